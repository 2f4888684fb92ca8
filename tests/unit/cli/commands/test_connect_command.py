"""Display of a connect session, from the controller's answers."""

from __future__ import annotations

from typing import Any

import pytest

from polydev.cli.commands.connect import SessionView, session_error
from polydev.cli.output.printer import Terminal
from polydev.shared.domain import step_label
from polydev.shared.errors import LoginExpired


def step(name: str, *, ended: bool = True, outcome: str = "done") -> dict[str, Any]:
    return {
        "step": name,
        "startedAt": "2026-01-01T00:00:00Z",
        "endedAt": "2026-01-01T00:00:07Z" if ended else None,
        "seconds": 7.0 if ended else None,
        "outcome": outcome if ended else None,
    }


def session(*steps: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return {
        "status": "running",
        "steps": list(steps),
        "oauthUrl": None,
        "ownBrowserUrl": None,
        "accepts": "code",
        "error": None,
    } | changes


async def test_each_step_is_shown_once(
    capsys: pytest.CaptureFixture[str],
) -> None:
    view = SessionView(Terminal())
    view.show(session(step("create-machines", ended=False)))
    view.show(session(step("create-machines"), step("browser-ready", ended=False)))
    view.show(session(step("create-machines"), step("browser-ready")))
    view.show(session(step("create-machines"), step("browser-ready")))
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("7.0 s  ")[1] for line in lines] == [
        step_label("create-machines"),
        step_label("browser-ready"),
    ]


async def test_url_is_shown_once_and_sanitized(capsys: pytest.CaptureFixture[str]) -> None:
    view = SessionView(Terminal())
    waiting = session(
        step("wait-for-person", ended=False),
        status="waiting_for_person",
        oauthUrl="https://example.test/authorize?x=\x1b[31m1",
    )
    for _ in range(2):
        view.show(waiting)
        assert view.waiting.is_set()
    assert capsys.readouterr().out.count("https://example.test/authorize?x=[31m1") == 1
    view.show(session(step("wait-for-person"), status="running"))
    assert not view.waiting.is_set()


async def test_unfinished_step_is_shown_as_failed(
    capsys: pytest.CaptureFixture[str],
) -> None:
    view = SessionView(Terminal())
    view.show(session(step("write", ended=False)))
    view.close()
    assert "✗" in capsys.readouterr().out


def test_session_error_is_the_controllers_error() -> None:
    error = session_error(
        session(status="expired", error={"code": "login-expired", "message": "Nobody came"})
    )
    assert isinstance(error, LoginExpired)
    assert error.line() == "Nobody came"
    assert session_error(session(status="completed")) is None


def test_reverted_step_has_a_label() -> None:
    assert step_label("undo write").startswith("Reverting: Copying")
