"""Test limits on long-running requests, and the end of stalled ones."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator
from contextlib import ExitStack
from types import SimpleNamespace
from typing import Any

import pytest

from polydev.controller.access import Caller
from polydev.controller.api.http import streams
from polydev.controller.api.http.concurrency_limits import ConcurrencyLimit
from polydev.controller.api.routes.chats import one_shot
from polydev.controller.chat import TurnEvent
from polydev.shared.domain import Role, Scope, User, UserId, now
from polydev.shared.errors import TooManyRequests

LIMIT_S = 30


def _caller(name: str, role: Role = Role.USER) -> Caller:
    user = User(UserId(name), f"{name}@example.test", now(), role)
    return Caller(user, frozenset(Scope), "sign-in", "192.0.2.7")


def test_limit_is_counted_per_user() -> None:
    limit, ann, ben = ConcurrencyLimit(2, "things"), _caller("ann"), _caller("ben")
    for _ in range(2):  # ended ones do not count
        with ExitStack() as stack:
            for user in (ann, ann, ben):
                stack.enter_context(limit.acquire(user))
            with pytest.raises(TooManyRequests, match="2 things"):
                stack.enter_context(limit.acquire(ann))


def test_administrators_are_limited_only_if_included() -> None:
    root = _caller("root", Role.ADMINISTRATOR)
    with ExitStack() as stack:
        for _ in range(3):
            stack.enter_context(ConcurrencyLimit(1, "things").acquire(root))
        strict = ConcurrencyLimit(1, "things", include_administrators=True)
        stack.enter_context(strict.acquire(root))
        with pytest.raises(TooManyRequests):
            stack.enter_context(strict.acquire(root))


async def test_stalled_reader_loses_its_stream(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(streams, "STALL_TIMEOUT_S", 0.1)
    ended = []

    async def chunks() -> AsyncGenerator[str]:
        try:
            yield "never taken"
        finally:
            ended.append("notified")

    async def receive() -> Any:
        await asyncio.Event().wait()

    async def send(_message: Any) -> None:
        await asyncio.Event().wait()

    async def begin_and_stall() -> None:
        generator = chunks()
        assert await anext(generator)
        with ExitStack() as stack:
            stack.callback(ended.append, "held")
            stream = streams.ResourceStream(generator, streams.SSE, stack.pop_all())
        await stream({"type": "http", "asgi": {"spec_version": "2.3"}}, receive, send)

    await asyncio.wait_for(begin_and_stall(), LIMIT_S)
    assert ended == ["notified", "held"]


@pytest.mark.parametrize("may", [True, False])
async def test_chat_turn_ends_when_access_ends(monkeypatch: pytest.MonkeyPatch, may: bool) -> None:
    monkeypatch.setattr(streams, "PERMISSION_CHECK_S", 0)
    ended = []

    async def events() -> AsyncGenerator[TurnEvent]:
        try:
            yield TurnEvent("text", "secret")
            yield TurnEvent("end", "secret")
        finally:
            ended.append(True)

    async def check_access() -> bool:
        return may

    turn: Any = SimpleNamespace(events=events)
    lines = [json.loads(line) async for line in one_shot._lines(turn, check_access)]
    assert lines[-1] == {"type": "end", "ok": may, "text": "secret" if may else ""}
    assert ("secret" in str(lines)) is may
    assert ended
