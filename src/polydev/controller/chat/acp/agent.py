"""An agent: one CLI process in a machine that speaks the Agent Client Protocol (ACP).

All chats of that CLI in that machine share it. `AgentPool` starts and stops it, `ClaimedTurn`
prompts it. The agent uses the login in the machine; it is offered neither files nor terminals,
since it already works where they are. Its messages are untrusted (see `transport.py`).
docs/chat-agents.md describes what the agents of the three CLIs do on the wire.
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
from polydev.controller.chat.acp.transport import MAX_SESSION_ID, AgentTransport
from polydev.shared.domain import TurnEnd, VmId
from polydev.shared.errors import (
    ChannelLost,
    ChatFailed,
    GuestMisbehaved,
    NotConnected,
    PolydevError,
)
from polydev.shared.host_client import HostClient
from polydev.shared.host_protocol import ExecRequest
from polydev.shared.providers import Provider

log = logging.getLogger("polydev.controller.chat")

Json = dict[str, Any]

WORKING_FOLDER = "/root"
_AUTH_REQUIRED = -32000
_QUIET_S = 0.3
_QUIET_LIMIT_S = 5.0
"""Gemini replays a session's history after it has answered `session/load`."""
_MAX_IDLE_SESSIONS = 2
"""Claude's agent keeps a process for each open session."""

_REASONS = {
    "end_turn": TurnEnd.END_TURN,
    "max_tokens": TurnEnd.MAX_TOKENS,
    "max_turn_requests": TurnEnd.MAX_TOKENS,
    "refusal": TurnEnd.REFUSAL,
    "cancelled": TurnEnd.CANCELLED,
}


class TurnListener(Protocol):
    """Receives what an agent sends during a turn."""

    def on_update(self, update: Json) -> None:
        """Handle a session update."""

    async def on_permission_request(self, params: Json) -> str | None:
        """Return the id of the option that the user chooses; None cancels the request."""


@dataclass(frozen=True, slots=True)
class AgentSession:
    """An open conversation of an agent."""

    session_id: str
    is_new: bool


class Agent:
    """Started by `start`; ends with its process, for whatever reason."""

    def __init__(
        self, host: HostClient, vm_id: VmId, about: Provider, start_limit_s: float
    ) -> None:
        self.vm_id = vm_id
        self.provider = about
        self.lease_count = 0
        self.has_ended = False
        self._host = host
        self._start_limit_s = start_limit_s
        self._listeners: dict[str, TurnListener] = {}
        self._sessions: dict[str, None] = {}
        """Open sessions, least recently used first."""
        self._session_lock = asyncio.Lock()
        self._capabilities: frozenset[str] = frozenset()
        self._update_received = asyncio.Event()
        self._stop_requested = asyncio.Event()
        self._ready: asyncio.Future[Connection] = asyncio.get_running_loop().create_future()
        self._transport: AgentTransport | None = None
        self._task: asyncio.Task[None] | None = None

    def start(self, on_ended: Callable[[Agent], None]) -> None:
        """Start the process; `on_ended` is called when it has ended."""
        self._task = asyncio.create_task(self._run())
        self._task.add_done_callback(lambda _: on_ended(self))

    @property
    def is_stopping(self) -> bool:
        return self.has_ended or self._stop_requested.is_set()

    async def ready(self) -> None:
        """Wait until the agent accepts requests. Raises the error that prevents it."""
        await asyncio.shield(self._ready)

    def stop(self) -> None:
        """Request that the agent ends."""
        self._stop_requested.set()

    async def aclose(self) -> None:
        """Stop the agent and wait until it has ended."""
        self.stop()
        if self._task is not None:
            await asyncio.wait({self._task})

    # -- sessions --------------------------------------------------------------------------------

    async def open_session(self, known_id: str | None) -> AgentSession:
        """Reopen the known session, or create one if the agent no longer has it.

        Raises: NotConnected if the CLI is logged out; ChatFailed.
        """
        async with self._session_lock:
            if known_id is not None and known_id in self._sessions:
                self._sessions[known_id] = self._sessions.pop(known_id)
                return AgentSession(known_id, is_new=False)
            session = None if known_id is None else await self._restore_session(known_id)
            if session is None:
                answer = await self._call("session/new", {"cwd": WORKING_FOLDER, "mcpServers": []})
                session = AgentSession(self._checked_session_id(answer), is_new=True)
            mode = {"sessionId": session.session_id, "modeId": self.provider.acp.mode}
            await self._call("session/set_mode", mode)
            self._sessions[session.session_id] = None
            await self._close_idle_sessions(session.session_id)
            return session

    def _checked_session_id(self, answer: Json) -> str:
        """Return the new session's id. Raises GuestMisbehaved, also if the id is in use."""
        name, session_id = self.provider.name, answer.get("sessionId")
        if not isinstance(session_id, str) or not 0 < len(session_id) <= MAX_SESSION_ID:
            raise GuestMisbehaved(f"{name} created a session without a valid id")
        if not session_id.isprintable():
            raise GuestMisbehaved(f"{name} created a session whose id is not printable")
        if session_id in self._sessions:
            raise GuestMisbehaved(f"{name} created two sessions with the same id")
        return session_id

    async def _restore_session(self, session_id: str) -> AgentSession | None:
        method = next((it for it in ("resume", "load") if it in self._capabilities), None)
        if method is None:
            return None
        params = {"sessionId": session_id, "cwd": WORKING_FOLDER, "mcpServers": []}
        try:
            await self._call(f"session/{method}", params)
        except ChatFailed:
            if self.has_ended:
                raise
            log.info("%s in %s no longer has a session", self.provider.id, self.vm_id)
            return None
        if method == "load":
            await self._wait_until_quiet()
        return AgentSession(session_id, is_new=False)

    async def _wait_until_quiet(self) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(_QUIET_LIMIT_S):
                while await _set_within(self._update_received, _QUIET_S):
                    self._update_received.clear()

    async def _close_idle_sessions(self, in_use: str) -> None:
        idle = [it for it in self._sessions if it not in self._listeners and it != in_use]
        if "close" in self._capabilities:
            for it in idle[: max(0, len(idle) - _MAX_IDLE_SESSIONS)]:
                del self._sessions[it]
                await self._call("session/close", {"sessionId": it})

    async def prompt(self, session_id: str, texts: list[str], listener: TurnListener) -> TurnEnd:
        """Run a turn, reporting to the listener. Raises NotConnected, ChatFailed."""
        if session_id in self._listeners:
            raise GuestMisbehaved(f"{self.provider.name} uses one session for two chats")
        self._listeners[session_id] = listener
        blocks = [{"type": "text", "text": it} for it in texts]
        try:
            params = {"sessionId": session_id, "prompt": blocks}
            answer = await self._call("session/prompt", params, limit_s=None)
        finally:
            del self._listeners[session_id]
        return _REASONS.get(str(answer.get("stopReason")), TurnEnd.END_TURN)

    async def cancel(self, session_id: str) -> None:
        """Ask the agent to stop the session's turn; `prompt` returns then."""
        connection = await asyncio.shield(self._ready)
        try:
            await connection.send_notification("session/cancel", {"sessionId": session_id})
        except ConnectionError:
            raise self._ended_error() from None

    # -- the process -----------------------------------------------------------------------------

    async def _run(self) -> None:
        try:
            await self._serve()
        except PolydevError as error:
            self._fail(error)
        except Exception:
            log.exception("the agent of %s in %s failed", self.provider.id, self.vm_id)
            self._fail(ChatFailed(f"{self.provider.name} could not be started"))
        finally:
            self.has_ended = True
            self._fail(ChatFailed(f"{self.provider.name} was stopped"))

    async def _serve(self) -> None:
        acp = self.provider.acp
        request = ExecRequest(
            argv=list(acp.argv),
            env={**self.provider.environment, **acp.environment},
            cwd=WORKING_FOLDER,
        )
        async with self._host.exec(self.vm_id, request) as process:
            transport = AgentTransport(process, self.provider.name, self._on_update)
            self._transport = transport
            connection = Connection(self._on_request, transport)
            try:
                await self._initialize(connection)
                self._ready.set_result(connection)
                log.info("the agent of %s runs in %s", self.provider.id, self.vm_id)
                await _wait_for_either(transport.ended, self._stop_requested)
            finally:
                self.has_ended = True
                await connection.close()

    async def _initialize(self, connection: Connection) -> None:
        params = {
            "protocolVersion": PROTOCOL_VERSION,
            "clientCapabilities": {},
            "clientInfo": {"name": "polydev", "title": "Polydev", "version": __version__},
        }
        answer = await self._call("initialize", params, connection)
        if answer.get("protocolVersion") != PROTOCOL_VERSION:
            raise GuestMisbehaved(f"{self.provider.name} uses another version of the protocol")
        capabilities = _as_dict(answer.get("agentCapabilities"))
        of_sessions = _as_dict(capabilities.get("sessionCapabilities"))
        found = {it for it in ("resume", "close") if isinstance(of_sessions.get(it), dict)}
        if capabilities.get("loadSession") is True:
            found.add("load")
        self._capabilities = frozenset(found)

    def _on_update(self, session_id: str, update: Json) -> None:
        self._update_received.set()
        listener = self._listeners.get(session_id)
        if listener is not None:
            listener.on_update(update)

    async def _on_request(self, method: str, params: Any, is_notification: bool) -> Any:
        if method != "session/request_permission" or not isinstance(params, dict):
            raise RequestError.method_not_found(method)
        listener = self._listeners.get(str(params.get("sessionId")))
        option_id = None if listener is None else await listener.on_permission_request(params)
        if option_id is None:
            return {"outcome": {"outcome": "cancelled"}}
        return {"outcome": {"outcome": "selected", "optionId": option_id}}

    async def _call(
        self,
        method: str,
        params: Json,
        connection: Connection | None = None,
        limit_s: float | None = -1,
    ) -> Json:
        """Send a request to the agent; `limit_s` of -1 is the start limit.

        Raises: NotConnected if the CLI is logged out; ChatFailed; the error that ended the agent.
        """
        if connection is None:
            connection = await asyncio.shield(self._ready)
        limit_s = self._start_limit_s if limit_s == -1 else limit_s
        try:
            async with asyncio.timeout(limit_s):
                answer: Json = await connection.send_request(method, params)
                return answer
        except RequestError as error:
            raise self._translate(error) from None
        except ConnectionError:
            raise self._ended_error() from None
        except TimeoutError:
            self.stop()
            name = self.provider.name
            raise ChatFailed(
                f"{name} did not answer within {limit_s:g} s", hint="Send your message again"
            ) from None

    def _translate(self, error: RequestError) -> PolydevError:
        name = self.provider.name
        if error.code == _AUTH_REQUIRED:
            self.stop()  # it has read a login that is no longer valid
            return NotConnected(f"{name} is logged out", hint=f"Reconnect {name}")
        return ChatFailed(f"{name} reports: {error}" if str(error) else f"{name} failed")

    def _ended_error(self) -> PolydevError:
        failure = self._transport.failure if self._transport is not None else None
        if failure is not None:
            return failure
        return ChannelLost(f"{self.provider.name} was stopped", hint="Send your message again")

    def _fail(self, error: PolydevError) -> None:
        if not self._ready.done():
            self._ready.set_exception(error)
            self._ready.exception()  # mark as retrieved: there may be no waiter


def _as_dict(value: object) -> Json:
    return value if isinstance(value, dict) else {}


async def _set_within(event: asyncio.Event, limit_s: float) -> bool:
    try:
        async with asyncio.timeout(limit_s):
            await event.wait()
    except TimeoutError:
        return False
    return True


async def _wait_for_either(one: asyncio.Event, other: asyncio.Event) -> None:
    waits = [asyncio.ensure_future(it.wait()) for it in (one, other)]
    try:
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for it in waits:
            it.cancel()
