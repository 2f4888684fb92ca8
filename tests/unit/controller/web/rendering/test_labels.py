"""Labels for all codes of the API."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import polydev
from polydev.controller.web.rendering import labels
from polydev.shared.domain import Scope


@pytest.mark.parametrize(
    ("agent", "label"),
    [
        (
            "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0",
            "Firefox on Linux",
        ),
        (
            "Mozilla/5.0 (iPhone; CPU iPhone OS 18_0 like Mac OS X) AppleWebKit/605.1.15 "
            "(KHTML, like Gecko) Version/18.0 Mobile/15E148 Safari/604.1",
            "Safari on iPhone",
        ),
        (
            "Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko) "
            "Chrome/140.0.0.0 Safari/537.36 Edg/140.0.0.0",
            "Edge on Windows",
        ),
        ("curl/8.0", "curl"),
        ("", "Unknown program"),
        ("x" * 500, "x" * 40),
    ],
)
def test_browser_label_has_name_and_system(agent: str, label: str) -> None:
    assert labels.browser_label(agent) == label


def test_every_scope_has_a_label() -> None:
    assert set(labels.SCOPE_LABELS) == set(Scope)


def test_every_audited_action_has_a_label() -> None:
    source = Path(polydev.__file__).parent / "controller"
    rooms = ("access", "api", "chat", "workflows")
    pattern = re.compile(r'(?:did|AuditEntry|\bby|entry)\(\s*(?:[\w.]+,\s*)?"([a-z-]+\.[a-z-]+)"')
    named = {
        action
        for room in rooms
        for path in (source / room).rglob("*.py")
        for action in pattern.findall(path.read_text())
    }
    assert len(named) > 15
    assert {
        it for it in named if labels.action_label(it) == it.replace(".", ": ").replace("-", " ")
    } == set()


def test_unknown_action_keeps_its_name() -> None:
    assert labels.action_label("moon.walk-twice") == "moon: walk twice"
