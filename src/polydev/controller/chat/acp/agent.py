"""One agent: a CLI in a machine that speaks the Agent Client Protocol, for all chats that need it.

`agents.py` starts and ends it, `turns.py` asks it. What it says is hostile (`wire.py`). It finds
the login in the machine and is offered neither files nor terminals: it acts where it is. What the
agents of the three CLIs do on the wire is in docs/chat-agents.md.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Protocol

from acp import PROTOCOL_VERSION, RequestError
from acp.core import Connection

from polydev import __version__
from polydev.controller.chat.acp.transport import MAX_SESSION_ID, Wire
from polydev.shared.domain import TurnEnd, VmId
from polydev.shared.errors import (
    ChannelLost,
    ChatFailed,
    GuestMisbehaved,
    NotConnected,
    PolydevError,
)
from polydev.shared.host_client import Host
from polydev.shared.host_protocol import ExecRequest
from polydev.shared.providers import Provider

log = logging.getLogger("polydev.controller.chat")

Json = dict[str, Any]

WORKING_FOLDER = "/root"
_AUTH_REQUIRED = -32000
_QUIET_S = 0.3
_QUIET_LIMIT_S = 5.0
"""Gemini tells a loaded session's history after it has said that it is loaded."""
_KEPT_SESSIONS = 2
"""Of those without a turn: Claude's agent has a process for each."""

_REASONS = {
    "end_turn": TurnEnd.END_TURN,
    "max_tokens": TurnEnd.MAX_TOKENS,
    "max_turn_requests": TurnEnd.MAX_TOKENS,
    "refusal": TurnEnd.REFUSAL,
    "cancelled": TurnEnd.CANCELLED,
}


class Listener(Protocol):
    """A turn, as its agent sees it."""

    def told(self, update: Json) -> None:
        """The agent has news."""

    async def asked(self, params: Json) -> str | None:
        """What the person chooses; None: nothing."""


@dataclass(frozen=True, slots=True)
class TakenUp:
    """A session that can be prompted."""

    session_id: str
    is_new: bool


class Agent:
    """Starts with `start`; is over when its program ends, for whatever reason."""

    def __init__(self, host: Host, vm_id: VmId, about: Provider, start_limit_s: float) -> None:
        self.vm_id = vm_id
        self.provider = about
        self.users = 0
        """How many turns use it."""
        self.is_over = False
        self._host = host
        self._start_limit_s = start_limit_s
        self._listeners: dict[str, Listener] = {}
        self._sessions: dict[str, None] = {}
        """Those that it holds, the longest unused first."""
        self._opening = asyncio.Lock()
        self._can: frozenset[str] = frozenset()
        self._heard = asyncio.Event()
        """Set when it has told something."""
        self._ending = asyncio.Event()
        self._ready: asyncio.Future[Connection] = asyncio.get_running_loop().create_future()
        self._wire: Wire | None = None
        self._task: asyncio.Task[None] | None = None

    def start(self, on_over: Callable[[Agent], None]) -> None:
        """Begin; `on_over` is told when it has ended."""
        self._task = asyncio.create_task(self._run())
        self._task.add_done_callback(lambda _: on_over(self))

    @property
    def is_ending(self) -> bool:
        return self.is_over or self._ending.is_set()

    async def ready(self) -> None:
        """Return when it can be asked. Raises why it cannot."""
        await asyncio.shield(self._ready)

    def end(self) -> None:
        """Have it end."""
        self._ending.set()

    async def aclose(self) -> None:
        """End it, and wait for that."""
        self.end()
        if self._task is not None:
            await asyncio.wait({self._task})

    # -- sessions --------------------------------------------------------------------------------

    async def take_up(self, known: str | None) -> TakenUp:
        """The known session, if the agent can still find it; otherwise a new one.

        Raises: NotConnected when it is not logged in; ChatFailed.
        """
        async with self._opening:
            if known is not None and known in self._sessions:
                self._sessions[known] = self._sessions.pop(known)
                return TakenUp(known, is_new=False)
            taken = None if known is None else await self._found_again(known)
            if taken is None:
                answer = await self._call("session/new", {"cwd": WORKING_FOLDER, "mcpServers": []})
                taken = TakenUp(self._new_session_id(answer), is_new=True)
            mode = {"sessionId": taken.session_id, "modeId": self.provider.acp.mode}
            await self._call("session/set_mode", mode)
            self._sessions[taken.session_id] = None
            await self._let_go_of_others(taken.session_id)
            return taken

    def _new_session_id(self, answer: Json) -> str:
        """Raises GuestMisbehaved also for one that another conversation has already."""
        name, session_id = self.provider.name, answer.get("sessionId")
        if not isinstance(session_id, str) or not 0 < len(session_id) <= MAX_SESSION_ID:
            raise GuestMisbehaved(f"{name} began a conversation without a name")
        if not session_id.isprintable():
            raise GuestMisbehaved(f"{name} began a conversation with a name that cannot be written")
        if session_id in self._sessions:
            raise GuestMisbehaved(f"{name} began two conversations under one name")
        return session_id

    async def _found_again(self, session_id: str) -> TakenUp | None:
        way = next((it for it in ("resume", "load") if it in self._can), None)
        if way is None:
            return None
        params = {"sessionId": session_id, "cwd": WORKING_FOLDER, "mcpServers": []}
        try:
            await self._call(f"session/{way}", params)
        except ChatFailed:
            if self.is_over:
                raise
            log.info("%s in %s knows a session no more", self.provider.id, self.vm_id)
            return None
        if way == "load":
            await self._until_quiet()
        return TakenUp(session_id, is_new=False)

    async def _until_quiet(self) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(_QUIET_LIMIT_S):
                while await _set_within(self._heard, _QUIET_S):
                    self._heard.clear()

    async def _let_go_of_others(self, session_id: str) -> None:
        idle = [it for it in self._sessions if it not in self._listeners and it != session_id]
        if "close" in self._can:
            for it in idle[: max(0, len(idle) - _KEPT_SESSIONS)]:
                del self._sessions[it]
                await self._call("session/close", {"sessionId": it})

    async def prompt(self, session_id: str, texts: list[str], listener: Listener) -> TurnEnd:
        """Have it take a turn; the listener hears what it says. Raises NotConnected, ChatFailed."""
        if session_id in self._listeners:
            raise GuestMisbehaved(f"{self.provider.name} has one conversation for two chats")
        self._listeners[session_id] = listener
        blocks = [{"type": "text", "text": it} for it in texts]
        try:
            asked = {"sessionId": session_id, "prompt": blocks}
            answer = await self._call("session/prompt", asked, limit_s=None)
        finally:
            del self._listeners[session_id]
        return _REASONS.get(str(answer.get("stopReason")), TurnEnd.END_TURN)

    async def cancel(self, session_id: str) -> None:
        """Have it stop the session's turn; `prompt` answers then."""
        connection = await asyncio.shield(self._ready)
        try:
            await connection.send_notification("session/cancel", {"sessionId": session_id})
        except ConnectionError:
            raise self._why_over() from None

    # -- the program -----------------------------------------------------------------------------

    async def _run(self) -> None:
        try:
            await self._serve()
        except PolydevError as error:
            self._fail(error)
        except Exception:
            log.exception("the agent of %s in %s failed", self.provider.id, self.vm_id)
            self._fail(ChatFailed(f"{self.provider.name} could not be asked"))
        finally:
            self.is_over = True
            self._fail(ChatFailed(f"{self.provider.name} was ended"))

    async def _serve(self) -> None:
        acp = self.provider.acp
        request = ExecRequest(
            argv=list(acp.argv),
            env={**self.provider.environment, **acp.environment},
            cwd=WORKING_FOLDER,
        )
        async with self._host.exec(self.vm_id, request) as process:
            self._wire = wire = Wire(process, self.provider.name, self._on_update)
            connection = Connection(self._on_request, wire)
            try:
                await self._introduce(connection)
                self._ready.set_result(connection)
                log.info("the agent of %s runs in %s", self.provider.id, self.vm_id)
                await _first_of(wire.ended, self._ending)
            finally:
                self.is_over = True
                await connection.close()

    async def _introduce(self, connection: Connection) -> None:
        hello = {
            "protocolVersion": PROTOCOL_VERSION,
            "clientCapabilities": {},
            "clientInfo": {"name": "polydev", "title": "Polydev", "version": __version__},
        }
        answer = await self._call("initialize", hello, connection)
        if answer.get("protocolVersion") != PROTOCOL_VERSION:
            raise GuestMisbehaved(f"{self.provider.name} speaks another version of the protocol")
        can = _dict(answer.get("agentCapabilities"))
        told = _dict(can.get("sessionCapabilities"))
        found = {it for it in ("resume", "close") if isinstance(told.get(it), dict)}
        if can.get("loadSession") is True:
            found.add("load")
        self._can = frozenset(found)

    def _on_update(self, session_id: str, update: Json) -> None:
        self._heard.set()
        listener = self._listeners.get(session_id)
        if listener is not None:
            listener.told(update)

    async def _on_request(self, method: str, params: Any, is_notification: bool) -> Any:
        if method != "session/request_permission" or not isinstance(params, dict):
            raise RequestError.method_not_found(method)
        listener = self._listeners.get(str(params.get("sessionId")))
        chosen = None if listener is None else await listener.asked(params)
        if chosen is None:
            return {"outcome": {"outcome": "cancelled"}}
        return {"outcome": {"outcome": "selected", "optionId": chosen}}

    async def _call(
        self,
        method: str,
        params: Json,
        connection: Connection | None = None,
        limit_s: float | None = -1,
    ) -> Json:
        """Ask the agent. Raises: NotConnected when it is not logged in; ChatFailed, and why the
        agent is over."""
        if connection is None:
            connection = await asyncio.shield(self._ready)
        limit_s = self._start_limit_s if limit_s == -1 else limit_s
        try:
            async with asyncio.timeout(limit_s):
                answer: Json = await connection.send_request(method, params)
                return answer
        except RequestError as error:
            raise self._refusal(error) from None
        except ConnectionError:
            raise self._why_over() from None
        except TimeoutError:
            self.end()
            name = self.provider.name
            raise ChatFailed(
                f"{name} did not answer within {limit_s:g} s", hint="Say it again"
            ) from None

    def _refusal(self, error: RequestError) -> PolydevError:
        name = self.provider.name
        if error.code == _AUTH_REQUIRED:
            self.end()  # what it has read of the login is of no use
            return NotConnected(f"{name} is not logged in any more", hint=f"Connect {name} again")
        return ChatFailed(f"{name} says: {error}" if str(error) else f"{name} could not do it")

    def _why_over(self) -> PolydevError:
        failure = self._wire.failure if self._wire is not None else None
        if failure is not None:
            return failure
        return ChannelLost(f"{self.provider.name} was ended", hint="Say it again")

    def _fail(self, error: PolydevError) -> None:
        if not self._ready.done():
            self._ready.set_exception(error)
            self._ready.exception()  # whether somebody waits for it or not


def _dict(value: object) -> Json:
    return value if isinstance(value, dict) else {}


async def _set_within(event: asyncio.Event, limit_s: float) -> bool:
    try:
        async with asyncio.timeout(limit_s):
            await event.wait()
    except TimeoutError:
        return False
    return True


async def _first_of(one: asyncio.Event, other: asyncio.Event) -> None:
    waits = [asyncio.ensure_future(it.wait()) for it in (one, other)]
    try:
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for it in waits:
            it.cancel()
