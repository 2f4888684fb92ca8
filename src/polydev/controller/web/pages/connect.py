"""`/connect/{sessionId}`: a connect session, from its first step to its result.

The page is rendered once, so that the live view and the input field stay. The state of the session
is one fragment, which `static/connect/` fetches with a long poll and whose attributes it reads.
All data comes from the API's SessionView, which names the CLI machine but not the browser machine.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any

from fastapi import APIRouter, Request, Response

from polydev.controller.api.http.path_params import SessionIdInPath
from polydev.controller.api.http.services import ServicesDep
from polydev.controller.api.routes.connect.sessions import After, Wait, get_session
from polydev.controller.api.schemas.connect import SessionView, StepView
from polydev.controller.web.rendering.render import Signed, fragment, page
from polydev.shared.domain import (
    API_KEY_STEPS,
    LOGIN_STEPS,
    CredentialKind,
    SessionStatus,
    StepName,
    now,
    step_label,
)
from polydev.shared.providers import provider

router = APIRouter(include_in_schema=False)


class Phase(StrEnum):
    """Content of the page beside the steps."""

    PREPARING = "preparing"
    SEEING = "seeing"
    """The live view of the browser machine is available."""
    FINISHING = "finishing"
    ENDED = "ended"


@dataclass(frozen=True, slots=True)
class Step:
    """A line of the stepper."""

    label: str
    state: str
    """`done`, `now`, `failed`, `later` or `skipped`."""
    seconds: float | None = None
    since: datetime | None = None
    note: str = ""


@dataclass(frozen=True, slots=True)
class Failure:
    """Title and advice for a session that did not complete."""

    title: str
    advice: str


@router.get("/connect/{sessionId}")
async def show_connect(
    session_id: SessionIdInPath, request: Request, caller: Signed, services: ServicesDep
) -> Response:
    """Show the session."""
    view = await get_session(session_id, caller, services)
    return page(request, "connect/page.html", **_context(view))


@router.get("/fragments/connect/{sessionId}")
async def refresh_session(
    session_id: SessionIdInPath,
    request: Request,
    caller: Signed,
    services: ServicesDep,
    after: After = None,
    wait: Wait = 0,
) -> Response:
    """Render the state again; with `after` and `wait`, once it differs from that version."""
    view = await get_session(session_id, caller, services, after, wait)
    return fragment(request, "connect/state.html", **_context(view))


def _context(view: SessionView) -> dict[str, Any]:
    about = provider(view.provider)
    return {
        "session": view,
        "cli": about,
        "phase": phase(view),
        "steps": list(steps(view)),
        "failure": None if view.error is None else failure(view, about.name),
        "login_url": view.ownBrowserUrl or view.oauthUrl or "",
        "wants_code": view.accepts == "code",
        "is_waiting": view.status is SessionStatus.WAITING,
        "uses_api_key": view.method is CredentialKind.API_KEY,
        "at": now(),
    }


def phase(view: SessionView) -> Phase:
    """Return the phase of a session."""
    if view.endedAt is not None:
        return Phase.ENDED
    done = {it.step for it in view.steps if it.outcome == "done"}
    if StepName.WAIT_FOR_USER in done:
        return Phase.FINISHING
    return Phase.SEEING if StepName.BROWSER_READY in done else Phase.PREPARING


def steps(view: SessionView) -> Iterator[Step]:
    """Yield all steps, including later ones, so that the list does not move."""
    known = {it.step: it for it in view.steps}
    planned = API_KEY_STEPS if view.method is CredentialKind.API_KEY else LOGIN_STEPS
    for it in [*planned, *(step for step in known if step not in planned)]:
        yield _step(view, step_label(it), known.get(it), is_now=it == view.step)


def failure(view: SessionView, name: str) -> Failure:
    """Explain why a session did not complete."""
    code = view.error.code if view.error else ""
    title = _TITLES.get(view.status, "{name} could not be connected")
    advice = _ADVICE.get(code, _ADVICE.get(view.status, _DEFAULT_ADVICE))
    return Failure(title.format(name=name), advice.format(name=name))


def _step(view: SessionView, label: str, step: StepView | None, *, is_now: bool) -> Step:
    if step is None:
        return Step(label, "later" if view.endedAt is None else "skipped")
    if step.outcome == "done":
        return Step(label, "done", step.seconds)
    if step.outcome is not None or view.endedAt is not None:
        return Step(label, "failed" if step.outcome != "undone" else "skipped", step.seconds)
    note = _queue_note(view.ahead) if view.ahead is not None else ""
    return Step(label, "now" if is_now else "later", None, step.startedAt, note)


def _queue_note(count: int) -> str:
    if count == 0:
        return "You are next in the queue"
    return "1 login is ahead of yours" if count == 1 else f"{count} logins are ahead of yours"


_TITLES = {
    SessionStatus.EXPIRED: "The login timed out",
    SessionStatus.CANCELLED: "Login cancelled",
}

_DEFAULT_ADVICE = "Polydev has cleaned up. You can try again at any time."

_ADVICE: dict[str, str] = {
    SessionStatus.CANCELLED: "Polydev has cleaned up. You can start again at any time.",
    SessionStatus.EXPIRED: "Start again when you are ready to log in.",
    "no-capacity": "All machines are in use. Try again later, or stop one of your machines.",
    "quota-exceeded": "Stop or delete one of your machines, then try again.",
    "machine-not-ready": "A machine did not start in time. The server may be busy. Try again.",
    "step-timed-out": "A step took too long. The server may be busy. Try again.",
    "login-failed": "The login did not complete. Try again here or in your own browser.",
    "credentials-not-accepted": "{name} rejected the login. Try again. If it keeps "
    "failing, check your machine.",
    "bad-credentials": "The login did not produce valid credentials for {name}. Try again.",
    "host-lost": "The host stopped responding. Try again: Polydev uses another host.",
    "host-unreachable": "The host is not responding. Try again later.",
    "guest-misbehaved": "The browser machine sent an invalid response. Try again.",
}
