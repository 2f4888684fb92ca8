"""Bound and check the messages of an untrusted agent."""

from __future__ import annotations

import asyncio
import tracemalloc
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from local_agents import BEGINNING, VM_ID, RecordingTurn, local_host, provider_with_agent

from polydev.controller.chat.acp import transport
from polydev.controller.chat.acp.agent import Agent
from polydev.shared.domain import TurnEnd
from polydev.shared.errors import ChatFailed, GuestMisbehaved, NotConnected, PolydevError
from polydev.shared.providers import Provider

Prompted = tuple[TurnEnd, RecordingTurn]
END = 'answer(message, {"stopReason": "end_turn"})'


@asynccontextmanager
async def running(about: Provider, limit_s: float = 20) -> AsyncIterator[Agent]:
    agent = Agent(local_host(), VM_ID, about, limit_s)
    agent.start(lambda _: None)
    try:
        yield agent
    finally:
        await agent.aclose()


async def prompted(on_prompt: str, heard: RecordingTurn | None = None) -> Prompted:
    """Prompt an agent that runs this code; its result and updates."""
    heard = heard or RecordingTurn()
    async with asyncio.timeout(40), running(provider_with_agent(on_prompt)) as agent:
        await agent.ready()
        session = await agent.open_session(None)
        assert session.is_new
        return await agent.prompt(session.session_id, ["hello"], heard), heard


async def test_updates_arrive_in_order_until_the_turn_ends() -> None:
    reason, heard = await prompted(f'for n in range(2000): text(f"{{n}} ")\n{END}')
    assert reason is TurnEnd.END_TURN
    assert heard.text == "".join(f"{n} " for n in range(2000))


async def test_lines_that_are_not_messages_are_ignored() -> None:
    reason, heard = await prompted(
        'print("Warning: something\\n\\n[1, 2]\\nnull\\n{}\\n" + "[" * 100000)\n'
        'print(json.dumps({"jsonrpc": "2.0", "id": [1], "result": 1}))\n'
        'print(json.dumps({"jsonrpc": "2.0", "id": {"a": 1}, "method": "session/x"}))\n'
        'print(json.dumps({"jsonrpc": "2.0", "id": 999, "result": "nobody asked"}))\n'
        'print(json.dumps({"method": 7, "params": []}))\n'
        'say(method="session/update", params=[1])\n'
        'say(method="session/update", params={"sessionId": 5, "update": "x"})\n'
        'say(method="_vendor/secret", params={"mail": "a@example.test"})\n'
        f'text("still here")\n{END}'
    )
    assert (reason, heard.text) == (TurnEnd.END_TURN, "still here")


@pytest.mark.parametrize(
    ("what", "on_prompt"),
    [
        ("a line that never ends", 'while True: sys.stdout.write("x" * 65536)'),
        ("a line that is too long", 'text("x" * 9_000_000)'),
        (
            "more values than a line may hold",
            'sys.stdout.write(\'{"method": "session/update", "params": {"sessionId": "s-1", \'\n'
            '    \'"update": {"sessionUpdate": "plan", "entries": [\' + "[]," * 2_500_000\n'
            f'    + "0]}}}}}}\\n")\n{END}',
        ),
        ("what is no message, for ever", 'while True: print("hello " * 1000)'),
        (
            "questions without end",
            'for n in range(100): say(id=n, method="session/request_permission", '
            'params={"sessionId": "s-1", "toolCall": {}, "options": []})',
        ),
    ],
)
async def test_agent_that_exceeds_a_bound_is_stopped(what: str, on_prompt: str) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(GuestMisbehaved):
            await prompted(on_prompt, _NeverAnswers())
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert most < 8 * transport.MAX_LINE_BYTES, what


async def test_costly_messages_slow_reading_down() -> None:
    limit = transport._RateLimit()
    limit.charge(transport._BURST_S + 0.3)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.15):
            await limit.spend(1, 1)


class _NeverAnswers(RecordingTurn):
    async def on_permission_request(self, params: dict[str, object]) -> str | None:
        await asyncio.Event().wait()
        raise AssertionError


async def test_unexpected_exit_is_reported() -> None:
    with pytest.raises(ChatFailed, match="exit code 3"):
        await prompted("sys.exit(3)")


async def test_missing_agent_hints_at_an_older_machine() -> None:
    with pytest.raises(ChatFailed) as failed:
        await prompted("sys.exit(127)")
    assert "older" in failed.value.hint


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        ('{"code": -32000, "message": "Authentication required"}', NotConnected),
        ('{"code": "x", "message": ["y"]}', ChatFailed),
        ('"just words"', ChatFailed),
        ('{"code": 10**40, "message": "\\u001b[31mred" + "x" * 10**6}', ChatFailed),
    ],
)
async def test_protocol_errors_become_polydev_errors(error: str, kind: type[PolydevError]) -> None:
    with pytest.raises(kind) as failed:
        await prompted(f'say(id=message["id"], error={error})')
    assert len(failed.value.message) < 1000
    assert failed.value.message.isprintable()


async def test_users_choice_reaches_the_agent() -> None:
    question = (
        'say(id="q", method="session/request_permission", params={"sessionId": "s-1", '
        '"toolCall": {"toolCallId": "c"}, "options": [{"optionId": "yes"}]})\n'
        "reply = json.loads(sys.stdin.readline())\n"
        f"text(json.dumps(reply['result']))\n{END}"
    )
    _, heard = await prompted(question, RecordingTurn("yes"))
    assert heard.text == '{"outcome": {"outcome": "selected", "optionId": "yes"}}'
    _, heard = await prompted(question, RecordingTurn(None))
    assert heard.text == '{"outcome": {"outcome": "cancelled"}}'


async def test_agent_gets_neither_files_nor_terminals() -> None:
    asked = (
        'say(id="q", method="fs/read_text_file", params={"sessionId": "s-1", "path": "/etc/x"})\n'
        "reply = json.loads(sys.stdin.readline())\n"
        f"text(str(reply['error']['code']))\n{END}"
    )
    _, heard = await prompted(asked)
    assert heard.text == "-32601"


async def test_agent_that_does_not_answer_in_time_is_stopped() -> None:
    sleeping = "import time\nif True:\n    if True:\n        time.sleep(60)\n"
    async with running(provider_with_agent("pass", sleeping), limit_s=0.5) as agent:
        with pytest.raises(ChatFailed, match=r"within 0\.5 s"):
            await agent.ready()


async def test_two_chats_never_share_a_session() -> None:
    async with running(provider_with_agent("pass")) as agent:
        await agent.ready()
        session = await agent.open_session(None)
        with pytest.raises(GuestMisbehaved, match="with the same id"):
            await agent.open_session(None)
        first, second = RecordingTurn(), RecordingTurn()
        prompting = asyncio.create_task(agent.prompt(session.session_id, ["one"], first))
        await asyncio.sleep(0)
        with pytest.raises(GuestMisbehaved, match="for two chats"):
            await agent.prompt(session.session_id, ["two"], second)
        prompting.cancel()
        await asyncio.gather(prompting, return_exceptions=True)


_CAPABLE = {
    "load": '"agentCapabilities": {"loadSession": True}',
    "resume": '"agentCapabilities": {"sessionCapabilities": {"resume": {}}}',
}


@pytest.mark.parametrize("way", _CAPABLE)
async def test_lost_session_is_replaced(way: str) -> None:
    async with running(provider_with_agent(END, _forgetful(_CAPABLE[way]))) as agent:
        await agent.ready()
        session = await agent.open_session("an-older-one")
        assert (session.session_id, session.is_new) == ("s-1", True)
        assert not (await agent.open_session("s-1")).is_new, "it has it"


def _forgetful(capabilities: str) -> str:
    """Source of an agent that has lost all sessions."""
    refusing = 'elif method in ("session/load", "session/resume"):\n'
    refusing += '        say(id=message["id"], error={"code": -32603, "message": "lost"})\n    '
    prompt = 'elif method == "session/prompt"'
    whole = BEGINNING.replace('"agentCapabilities": {}', capabilities)
    return whole.replace(prompt, refusing + prompt)
