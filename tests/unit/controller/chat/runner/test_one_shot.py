"""Limits of one-shot turns."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from polydev.controller.chat import OneShotTurn
from polydev.controller.chat.runner import one_shot
from polydev.controller.workflows.machines.actor import Actor
from polydev.shared.domain import VmId
from polydev.shared.errors import GuestMisbehaved
from polydev.shared.providers import provider


class Talker:
    """Host whose CLI repeats one message."""

    exit_code = 0

    @asynccontextmanager
    async def exec(self, _vm_id: str, _request: object) -> AsyncIterator[Talker]:
        yield self

    async def write(self, _data: bytes) -> None: ...

    async def write_eof(self) -> None: ...

    async def stdout(self) -> AsyncIterator[bytes]:
        message = {"type": "agent_message", "text": "x" * 100}
        line = json.dumps({"type": "item.completed", "item": message}).encode() + b"\n"
        for _ in range(10):
            yield line


class AlwaysRunning:
    """Resumer of machines that always run."""

    async def ensure_running(self, _cause: Actor, _vm_id: VmId) -> None: ...

    @asynccontextmanager
    async def keep_in_use(self, _vm_id: VmId) -> AsyncIterator[None]:
        yield


@pytest.mark.parametrize(("limit", "ok"), [(999, False), (1000, True)])
async def test_answer_is_limited_in_length(
    monkeypatch: pytest.MonkeyPatch, limit: int, ok: bool
) -> None:
    monkeypatch.setattr(one_shot, "MAX_ANSWER_CHARACTERS", limit)
    host: Any = Talker()
    resume_on_use: Any = AlwaysRunning()
    cause = Actor.for_controller("tests", "a turn")
    turn = OneShotTurn(
        host, provider("codex"), VmId("vm-1"), "hello", resume_on_use, cause, must_resume=False
    )
    events = [event async for event in turn.events()]
    assert (events[-1].type, events[-1].ok) == ("end", ok)
    assert any(isinstance(it.error, GuestMisbehaved) for it in events) is not ok
