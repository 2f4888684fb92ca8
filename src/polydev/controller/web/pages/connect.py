"""`/connect/{sessionId}`: a connect session as its person follows it, to whichever end it comes.

The page is a frame, drawn once: the live view and the field for what is pasted keep what is in
them. What changes with the session is one fragment, which the page asks for as a long poll; what
`static/connect.js` does besides, it reads from that fragment's attributes. Everything here comes
from the API's own view of the session, which names the CLI machine and never the browser machine.
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
    """What the page shows beside the steps."""

    PREPARING = "preparing"
    SEEING = "seeing"
    """The browser machine can be seen and used."""
    FINISHING = "finishing"
    ENDED = "ended"


@dataclass(frozen=True, slots=True)
class Step:
    """A line of the stepper."""

    words: str
    state: str
    """`done`, `now`, `failed`, `later` or `skipped`."""
    seconds: float | None = None
    since: datetime | None = None
    note: str = ""


@dataclass(frozen=True, slots=True)
class End:
    """How a session that did not complete is told."""

    title: str
    advice: str


@router.get("/connect/{sessionId}")
async def show_connect(
    session_id: SessionIdInPath, request: Request, caller: Signed, services: ServicesDep
) -> Response:
    """The page."""
    view = await get_session(session_id, caller, services)
    return page(request, "connect.html", **_told(view))


@router.get("/fragments/connect/{sessionId}")
async def connect_again(
    session_id: SessionIdInPath,
    request: Request,
    caller: Signed,
    services: ServicesDep,
    after: After = None,
    wait: Wait = 0,
) -> Response:
    """How the session stands; with `after` and `wait`, as soon as it is no longer that version."""
    view = await get_session(session_id, caller, services, after, wait)
    return fragment(request, "connect_state.html", **_told(view))


def _told(view: SessionView) -> dict[str, Any]:
    about = provider(view.provider)
    return {
        "session": view,
        "cli": about,
        "phase": phase(view),
        "steps": list(steps(view)),
        "end": None if view.error is None else end(view, about.name),
        "own_url": view.ownBrowserUrl or view.oauthUrl or "",
        "wants_code": view.accepts == "code",
        "is_waiting": view.status is SessionStatus.WAITING,
        "by_key": view.method is CredentialKind.API_KEY,
        "at": now(),
    }


def phase(view: SessionView) -> Phase:
    """What there is to see beside the steps."""
    if view.endedAt is not None:
        return Phase.ENDED
    done = {it.step for it in view.steps if it.outcome == "done"}
    if StepName.WAIT_FOR_PERSON in done:
        return Phase.FINISHING
    return Phase.SEEING if StepName.BROWSER_READY in done else Phase.PREPARING


def steps(view: SessionView) -> Iterator[Step]:
    """Every step that there is, those that have not begun too: so the list keeps its place."""
    known = {it.step: it for it in view.steps}
    planned = API_KEY_STEPS if view.method is CredentialKind.API_KEY else LOGIN_STEPS
    for it in [*planned, *(step for step in known if step not in planned)]:
        yield _step(view, step_label(it), known.get(it), is_now=it == view.step)


def end(view: SessionView, name: str) -> End:
    """How it ended, for people."""
    code = view.error.code if view.error else ""
    title = _TITLES.get(view.status, "{name} could not be connected")
    advice = _ADVICE.get(code, _ADVICE.get(view.status, _OTHERWISE))
    return End(title.format(name=name), advice.format(name=name))


def _step(view: SessionView, words: str, step: StepView | None, *, is_now: bool) -> Step:
    if step is None:
        return Step(words, "later" if view.endedAt is None else "skipped")
    if step.outcome == "done":
        return Step(words, "done", step.seconds)
    if step.outcome is not None or view.endedAt is not None:
        return Step(words, "failed" if step.outcome != "undone" else "skipped", step.seconds)
    note = _ahead(view.ahead) if view.ahead is not None else ""
    return Step(words, "now" if is_now else "later", None, step.startedAt, note)


def _ahead(count: int) -> str:
    if count == 0:
        return "You are next in the queue"
    return "1 login is ahead of yours" if count == 1 else f"{count} logins are ahead of yours"


_TITLES = {
    SessionStatus.EXPIRED: "The login timed out",
    SessionStatus.CANCELLED: "Login cancelled",
}

_OTHERWISE = "Polydev has cleaned up. You can try again at any time."

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
