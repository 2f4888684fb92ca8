"""Check the real agents against docs/chat-agents.md.

These tests fail when a new version of a CLI or adapter behaves differently.
"""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from acp import Client, RequestError, connect_to_agent, text_block
from acp.client import ClientSideConnection
from acp.schema import (
    AgentMessageChunk,
    AllowedOutcome,
    DeniedOutcome,
    InitializeResponse,
    RequestPermissionResponse,
    SessionInfoUpdate,
    ToolCallProgress,
    ToolCallStart,
    UserMessageChunk,
)
from cli_logins import LOGINS
from cli_world import PATIENCE_S, World, open_world

from polydev.shared.providers import Provider, provider

pytestmark = pytest.mark.clis

QUESTION = "How many legs has a spider in Zanzibar?"
ANSWER = f"The fake model received: {QUESTION}"
LINE_BYTES = 16 * 1024 * 1024


@pytest.fixture(scope="module")
def shared() -> Iterator[World]:
    with open_world() as it:
        yield it


@pytest.fixture(scope="module", params=LOGINS)
def cli(request: pytest.FixtureRequest) -> Provider:
    return provider(request.param)


@pytest.fixture(scope="module")
def logged_in(shared: World, cli: Provider) -> Path:
    """Home folder with a login of the CLI."""
    it = shared.with_new_home()
    LOGINS[cli.id](it)
    return it.home


@pytest.fixture
def world(shared: World, logged_in: Path) -> World:
    """World with a login and nothing else."""
    it = shared.with_new_home(logged_in)
    (it.folder / "work").mkdir()
    return it


@dataclass
class Listener(Client):
    """Records updates, and answers permission requests."""

    choice: str | None = None
    """Option kind to choose when asked; None: no request is expected."""
    updates: list[Any] = field(default_factory=list)
    requests: list[Any] = field(default_factory=list)

    async def session_update(self, session_id: str, update: Any, **_: Any) -> None:
        self.updates.append(update)

    async def request_permission(
        self, session_id: str, tool_call: Any, options: list[Any], **_: Any
    ) -> RequestPermissionResponse:
        self.requests.append(tool_call)
        chosen = [it for it in options if it.kind == self.choice]
        if not chosen:
            return RequestPermissionResponse(outcome=DeniedOutcome(outcome="cancelled"))
        outcome = AllowedOutcome(outcome="selected", option_id=chosen[0].option_id)
        return RequestPermissionResponse(outcome=outcome)

    async def ext_notification(self, method: str, params: dict[str, Any]) -> None:
        """Ignore `_auth/status_update`."""

    def of(self, *kinds: type) -> list[Any]:
        return [it for it in self.updates if isinstance(it, kinds)]

    @property
    def text(self) -> str:
        return "".join(it.content.text for it in self.of(AgentMessageChunk))


@dataclass
class Running:
    """Initialized agent."""

    agent: ClientSideConnection
    listener: Listener
    can: InitializeResponse
    cli: Provider
    folder: Path

    async def new_session(self) -> str:
        """Create a session in the mode that asks for permission."""
        session = await self.agent.new_session(cwd=str(self.folder), mcp_servers=[])
        assert self.cli.acp.mode in [it.id for it in session.modes.available_modes]
        await self.set_asking_mode(session.session_id)
        return str(session.session_id)

    async def set_asking_mode(self, session_id: str) -> None:
        await self.agent.set_session_mode(session_id=session_id, mode_id=self.cli.acp.mode)

    async def prompt(self, session_id: str, text: str) -> str:
        """Run a turn; return its stop reason."""
        turn = self.agent.prompt(session_id=session_id, prompt=[text_block(text)])
        return str((await asyncio.wait_for(turn, PATIENCE_S)).stop_reason)


@asynccontextmanager
async def running(
    world: World, cli: Provider, listener: Listener | None = None
) -> AsyncIterator[Running]:
    """Start an agent as `chat/` does, with this world's programs."""
    ours = {
        name: value.replace("/usr/local/bin", str(world.clis))
        for name, value in cli.acp.environment.items()
    }
    process = await asyncio.create_subprocess_exec(
        *("ip", "netns", "exec", world.namespace.name, *cli.acp.argv),
        env=world.environment(**cli.environment, **ours),
        cwd=world.folder / "work",
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
        limit=LINE_BYTES,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    listener = listener or Listener()
    try:
        agent = connect_to_agent(listener, process.stdin, process.stdout)
        can = await asyncio.wait_for(agent.initialize(protocol_version=1), PATIENCE_S)
        yield Running(agent, listener, can, cli, world.folder / "work")
        process.stdin.close()
        assert await asyncio.wait_for(process.wait(), PATIENCE_S) == 0
    finally:
        with suppress(ProcessLookupError):
            process.kill()
        await process.wait()


async def test_agent_answers_a_prompt(world: World, cli: Provider) -> None:
    async with running(world, cli) as it:
        assert it.can.protocol_version == 1
        session = await it.new_session()
        assert await it.prompt(session, QUESTION) == "end_turn"
        assert it.listener.text == ANSWER
        assert len(it.listener.of(AgentMessageChunk)) > 1, "the answer is streamed"


async def test_agent_without_login_reports_it(shared: World, cli: Provider) -> None:
    world = shared.with_new_home()
    (world.folder / "work").mkdir()
    (world.home / ".codex").mkdir()
    async with running(world, cli) as it:
        with pytest.raises(RequestError) as refused:
            await it.prompt(await it.new_session(), QUESTION)
        assert refused.value.code == -32000


@pytest.mark.parametrize("choice", ["allow_once", "reject_once"])
async def test_agent_asks_before_it_runs_a_command(
    world: World, cli: Provider, choice: str
) -> None:
    created = world.folder / "work" / "created"
    async with running(world, cli, Listener(choice)) as it:
        session = await it.new_session()
        ended = await it.prompt(session, f"run: touch {created}")
        [request] = it.listener.requests
        assert str(created) in request.title
        assert request.kind == "execute"
        assert created.exists() == (choice == "allow_once")
        refused_ends_it = cli.id == "codex" and choice == "reject_once"
        assert ended == ("cancelled" if refused_ends_it else "end_turn")
        calls = it.listener.of(ToolCallStart, ToolCallProgress)
        assert {call.tool_call_id for call in calls} <= {request.tool_call_id}
        if choice == "allow_once":
            assert calls[-1].status == "completed"
        assert await it.prompt(session, QUESTION) == "end_turn"


async def test_agent_shows_diffs_of_its_writes(world: World, cli: Provider) -> None:
    file = world.folder / "work" / "note.txt"
    async with running(world, cli, Listener("allow_once")) as it:
        assert await it.prompt(await it.new_session(), f"write {file}: a line") == "end_turn"
        heard = [*it.listener.of(ToolCallStart, ToolCallProgress), *it.listener.requests]
        contents = [content for call in heard for content in call.content or []]
        diffs = [content for content in contents if content.type == "diff"]
        assert {(it.path, it.old_text or "", it.new_text) for it in diffs} == {
            (str(file), "", "a line\n")
        }
    assert file.read_text() == "a line\n"


async def test_agent_stops_when_cancelled(world: World, cli: Provider) -> None:
    async with running(world, cli) as it:
        session = await it.new_session()
        turn = asyncio.create_task(it.prompt(session, "slowly: 1000"))
        async with asyncio.timeout(PATIENCE_S):
            while not it.listener.of(AgentMessageChunk):
                await asyncio.sleep(0.05)
        await it.agent.cancel(session_id=session)
        assert await turn == "cancelled"
        assert await it.prompt(session, QUESTION) == "end_turn"


async def test_session_continues_in_another_process(world: World, cli: Provider) -> None:
    async with running(world, cli) as it:
        session = await it.new_session()
        await it.prompt(session, QUESTION)
    _backdate_session(world, session)
    async with running(world, cli) as it:
        capabilities = it.can.agent_capabilities
        can_resume = capabilities.session_capabilities.resume is not None
        assert can_resume == (cli.id != "gemini_cli")
        assert capabilities.load_session
        again = {"cwd": str(it.folder), "session_id": session, "mcp_servers": []}
        if can_resume:
            await it.agent.resume_session(**again)
            assert not it.listener.of(UserMessageChunk, AgentMessageChunk)
        else:
            await it.agent.load_session(**again)
        await it.set_asking_mode(session)
        assert await it.prompt(session, "Go on") == "end_turn"
        assert it.listener.text.endswith("received: Go on")


async def test_unknown_session_is_an_error(world: World, cli: Provider) -> None:
    unknown = "0199f3c8-0000-7000-8000-00000000abcd"
    async with running(world, cli) as it:
        again = {"cwd": str(it.folder), "session_id": unknown, "mcp_servers": []}
        with pytest.raises(RequestError):
            await it.agent.load_session(**again)
        assert await it.prompt(await it.new_session(), QUESTION) == "end_turn"


@pytest.mark.parametrize("cli", ["codex"], indirect=True)
async def test_codex_names_the_session(world: World, cli: Provider) -> None:
    async with running(world, cli) as it:
        await it.prompt(await it.new_session(), QUESTION)
        assert [t.title for t in it.listener.of(SessionInfoUpdate) if t.title] == [QUESTION]


def _backdate_session(world: World, session: str) -> None:
    """Backdate a session: Gemini CLI corrupts one that it loads within a minute.

    The file's name has that minute, and the load writes a file of the same name.
    """
    for file in world.home.glob(f".gemini/tmp/*/chats/session-*-{session[:8]}.jsonl"):
        file.rename(file.with_name(f"session-2020-01-01T00-00-{session[:8]}.jsonl"))
