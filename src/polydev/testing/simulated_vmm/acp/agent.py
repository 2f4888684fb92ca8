"""The agent of a simulated CLI: the Agent Client Protocol on standard streams.

The prompt determines its actions (`polydev.testing.prompt_script`). Sessions are stored in the
simulated machine, so that a later agent can load them. Source: agentclientprotocol.com, protocol
version 1.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

from polydev.testing.simulated_vmm.acp.session import Session, TurnOptions
from polydev.testing.simulated_vmm.acp.wire import Message, RpcError, Source, Wire

PROTOCOL_VERSION = 1
AUTH_REQUIRED = -32000
INVALID_PARAMS = -32602
METHOD_NOT_FOUND = -32601
_FOLDER = "root/.polydev-simulated/sessions"


class AcpAgent:
    """A running agent: answers requests until its input ends."""

    def __init__(
        self,
        root: Path,
        wire: Wire,
        *,
        is_logged_in: Callable[[], bool],
        answer_s: float = 0,
    ) -> None:
        self._root = root
        self._wire = wire
        self._is_logged_in = is_logged_in
        self._answer_s = answer_s
        self._sessions: dict[str, Session] = {}
        self._turns: dict[str, asyncio.Task[str]] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(self, source: Source) -> int:
        """Serve until the input ends; return the exit code."""
        try:
            async for message in self._wire.messages(source):
                task = asyncio.create_task(self._handle(message))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
                await asyncio.sleep(0)  # start the task before reading the next message
        finally:
            for work in (*self._turns.values(), *self._tasks):
                work.cancel()
        return 0

    async def _handle(self, message: Message) -> None:
        if message.method is None:
            self._wire.resolve(message)
            return
        try:
            result = await self._dispatch(message.method, message.params)
        except RpcError as error:
            self._wire.refuse(message, error)
            return
        if message.id is not None:
            self._wire.reply(message, result)

    async def _dispatch(self, method: str, params: dict[str, Any]) -> dict[str, Any]:
        known = {
            "session/new": self._new,
            "session/load": self._load,
            "session/resume": self._resume,
            "session/prompt": self._prompt,
            "session/cancel": self._cancel,
            "session/set_mode": self._set_mode,
        }
        if method in known:
            return await known[method](params)
        if method == "initialize":
            return _INITIALIZED
        if method in _ACCEPTED:
            return {}
        raise RpcError(METHOD_NOT_FOUND, f"Method not found: {method}")

    async def _new(self, params: dict[str, Any]) -> dict[str, Any]:
        self._require_login()
        session = Session(str(uuid.uuid4()), self._root, self._wire)
        self._sessions[session.session_id] = session
        self._save(session)
        return {"sessionId": session.session_id, "modes": session.modes()}

    async def _load(self, params: dict[str, Any]) -> dict[str, Any]:
        session = await self._stored_session(params)
        session.replay()
        return {"modes": session.modes()}

    async def _resume(self, params: dict[str, Any]) -> dict[str, Any]:
        return {"modes": (await self._stored_session(params)).modes()}

    async def _stored_session(self, params: dict[str, Any]) -> Session:
        self._require_login()
        session_id = str(params.get("sessionId", ""))
        try:
            uuid.UUID(session_id)
            stored = await asyncio.to_thread(self._path(session_id).read_text)
            updates = json.loads(stored)
        except (ValueError, OSError):
            raise RpcError(INVALID_PARAMS, "Invalid session identifier") from None
        session = Session(session_id, self._root, self._wire, updates)
        self._sessions[session_id] = session
        return session

    async def _prompt(self, params: dict[str, Any]) -> dict[str, Any]:
        self._require_login()
        session = self._session(params)
        if session.session_id in self._turns:
            raise RpcError(INVALID_PARAMS, "A turn of this session is in progress")
        blocks = params.get("prompt")
        texts = [it.get("text", "") for it in blocks or () if isinstance(it, dict)]
        turn = asyncio.create_task(session.turn("\n".join(texts), TurnOptions(self._answer_s)))
        self._turns[session.session_id] = turn
        try:
            return {"stopReason": await turn}
        except asyncio.CancelledError:
            if not turn.cancelled():
                raise
            return {"stopReason": "cancelled"}
        finally:
            turn.cancel()
            self._turns.pop(session.session_id, None)
            with contextlib.suppress(OSError):
                self._save(session)

    async def _set_mode(self, params: dict[str, Any]) -> dict[str, Any]:
        self._session(params).mode = str(params.get("modeId"))
        return {}

    async def _cancel(self, params: dict[str, Any]) -> dict[str, Any]:
        turn = self._turns.get(self._session(params).session_id)
        if turn is not None:
            turn.cancel()
        return {}

    def _session(self, params: dict[str, Any]) -> Session:
        session = self._sessions.get(str(params.get("sessionId", "")))
        if session is None:
            raise RpcError(INVALID_PARAMS, "Session not found")
        return session

    def _require_login(self) -> None:
        if not self._is_logged_in():
            raise RpcError(AUTH_REQUIRED, "Authentication required")

    def _path(self, session_id: str) -> Path:
        return self._root / _FOLDER / f"{session_id}.json"

    def _save(self, session: Session) -> None:
        """Write in no thread: it could outlive the machine's folder."""
        path = self._path(session.session_id)
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.write_text(json.dumps(session.updates))


_ACCEPTED = {"session/set_model", "session/set_config_option", "session/close"}
_INITIALIZED: dict[str, Any] = {
    "protocolVersion": PROTOCOL_VERSION,
    "agentInfo": {"name": "polydev-simulated", "title": "Simulated CLI", "version": "1"},
    "agentCapabilities": {
        "loadSession": True,
        "sessionCapabilities": {"resume": {}},
        "promptCapabilities": {"image": False, "audio": False, "embeddedContext": True},
    },
    "authMethods": [],
}
