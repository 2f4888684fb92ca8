"""State of a session on the connect page."""

from __future__ import annotations

from dataclasses import fields
from datetime import timedelta

import pytest

from polydev.controller.api.schemas.connect import SessionView
from polydev.controller.web.pages import connect
from polydev.controller.web.pages.connect import Phase
from polydev.shared import errors
from polydev.shared.domain import (
    API_KEY_STEPS,
    LOGIN_STEPS,
    ConnectSession,
    CredentialKind,
    SessionId,
    SessionStatus,
    SessionStep,
    UserId,
    now,
)

AT = now()
HERE = SessionId("this-session")
LOGIN = list(LOGIN_STEPS)


def _view(done: int, status: SessionStatus = SessionStatus.RUNNING, **more: object) -> SessionView:
    """Session with so many steps done, in the next one unless it has ended."""
    values: dict[str, object] = {it.name: None for it in fields(ConnectSession)}
    values |= {"session_id": HERE, "user_id": UserId("ann"), "provider": "codex", "status": status}
    values |= {"created_at": AT, "expires_at": AT, "method": CredentialKind.LOGIN}
    values["step"] = LOGIN[min(done, len(LOGIN) - 1)]
    values |= {"ended_at": AT} if status.is_end else {}
    over = [SessionStep(HERE, it, AT, AT + timedelta(seconds=2), "done") for it in LOGIN[:done]]
    begun = [SessionStep(HERE, it, AT, None, None) for it in LOGIN[done : done + 1]]
    session = ConnectSession(**(values | more))  # type: ignore[arg-type]
    return SessionView.of(session, [*over, *([] if status.is_end else begun)], None)


def test_all_steps_are_listed_from_the_start() -> None:
    for done in range(len(LOGIN)):
        shown = list(connect.steps(_view(done)))
        states = ["done"] * done + ["now"] + ["later"] * (len(LOGIN) - done - 1)
        assert [it.state for it in shown] == states
        assert all("{" not in it.label and "-" not in it.label for it in shown)
        assert {it.seconds for it in shown[:done]} <= {2.0}


@pytest.mark.parametrize(
    ("done", "phase"),
    [
        (0, Phase.PREPARING),
        (2, Phase.PREPARING),
        (3, Phase.SEEING),
        (4, Phase.SEEING),
        (5, Phase.FINISHING),
        (7, Phase.FINISHING),
    ],
)
def test_live_view_is_shown_while_the_user_logs_in(done: int, phase: Phase) -> None:
    assert connect.phase(_view(done)) is phase
    assert connect.phase(_view(done, SessionStatus.CANCELLED)) is Phase.ENDED


def test_steps_after_a_cancellation_are_skipped() -> None:
    view = _view(2, SessionStatus.CANCELLED)
    assert [it.state for it in connect.steps(view)] == ["done"] * 2 + ["skipped"] * 6


def test_api_key_needs_no_browser() -> None:
    view = _view(0, method=CredentialKind.API_KEY)
    labels = [it.label for it in connect.steps(view)]
    assert labels == [it.label for it in API_KEY_STEPS]
    assert "browser" not in " ".join(labels)


@pytest.mark.parametrize(
    ("ahead", "note"), [(0, "You are next"), (1, "1 login is ahead"), (7, "7 logins are ahead")]
)
def test_queue_position_is_shown(ahead: int, note: str) -> None:
    view = _view(0, SessionStatus.QUEUED).model_copy(update={"ahead": ahead})
    assert next(connect.steps(view)).note.startswith(note)


def test_every_error_has_advice() -> None:
    known = {kind.code for kind in vars(errors).values() if isinstance(kind, type)
             and issubclass(kind, errors.PolydevError)}  # fmt: skip
    statuses = set(SessionStatus)
    assert set(connect._ADVICE) <= known | {str(it) for it in statuses}
    for code in known:
        status = SessionStatus.FAILED
        view = _view(4, status, error_code=code, error="It broke")
        failure = connect.failure(view, "Codex")
        assert failure.title == "Codex could not be connected"
        assert failure.advice
        assert "{" not in failure.advice
