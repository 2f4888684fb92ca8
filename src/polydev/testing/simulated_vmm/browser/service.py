"""The browser service of a simulated browser machine; its logins complete themselves.

Forwarded ports connect to it directly, so that no socket listens. It serves the same HTTP API, with
the same responses, as `guest/browser_service/api.py`.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import json
import socket
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any

from aiohttp import web

from polydev.testing.simulated_vmm.browser.credentials import LOGINS, SimulatedLogin
from polydev.testing.simulated_vmm.simulation import LoginEnd, Simulation

SERVICE_PORT = 8080

_LONGEST_WAIT_S = 55.0
_BODY_BYTES = 64 * 1024
_SHUTDOWN_S = 0.05
"""Pending requests do not delay a machine's end; 0 would mean forever."""
_ENDS = frozenset({"ready", "failed"})

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class _Session:
    """One login: its step, and a condition that signals changes."""

    def __init__(self, session_id: str, provider: str, login: SimulatedLogin) -> None:
        self.session_id = session_id
        self.provider = provider
        self.login = login
        self.url = login.url()
        self.step = "waiting_for_person"
        self.version = 1
        self.credentials: dict[str, Any] | None = None
        self._changed = asyncio.Condition()

    async def end(self, outcome: LoginEnd) -> None:
        if self.step in _ENDS:
            return
        if outcome is LoginEnd.CREDENTIALS:
            self.credentials = self.login.credentials()
        self.step = "ready" if outcome is LoginEnd.CREDENTIALS else "failed"
        self.version += 1
        async with self._changed:
            self._changed.notify_all()

    async def wait_until(self, claim: Callable[[], bool], wait_s: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(wait_s), self._changed:
                await self._changed.wait_for(claim)

    @property
    def reason(self) -> str | None:
        return "the simulation makes this login fail" if self.step == "failed" else None

    def state(self) -> dict[str, Any]:
        return {
            "sessionId": self.session_id,
            "provider": self.provider,
            "step": self.step,
            "urlKnown": True,
            "opened": True,
            "browserError": None,
            "reason": self.reason,
            "version": self.version,
        }


class BrowserService:
    """The service of one machine."""

    def __init__(self, token: str, simulation: Simulation) -> None:
        self.token = token
        self._simulation = simulation
        self._session: _Session | None = None
        self._logging_in: asyncio.Task[None] | None = None
        self._runner: web.AppRunner | None = None

    async def open_connection(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Connect to the service, as if through its port."""
        if self._runner is None:
            self._runner = web.AppRunner(
                self._application(), access_log=None, shutdown_timeout=_SHUTDOWN_S
            )
            await self._runner.setup()
        ours, theirs = socket.socketpair()
        server = self._runner.server
        if server is None:
            raise ConnectionRefusedError
        await asyncio.get_running_loop().connect_accepted_socket(server, theirs)
        return await asyncio.open_connection(sock=ours)

    async def complete_login(self) -> None:
        """Complete the login, as the user does on the screen."""
        if self._session is not None:
            await self._session.end(LoginEnd.CREDENTIALS)

    async def close(self) -> None:
        if self._logging_in is not None:
            self._logging_in.cancel()
        if self._runner is not None:
            await self._runner.cleanup()

    def _application(self) -> web.Application:
        app = web.Application(middlewares=[self._guard], client_max_size=_BODY_BYTES)
        app.add_routes(
            [
                web.get("/health", self._health),
                web.post("/auth/{provider}", self._start),
                web.get("/auth/{provider}/oauth-url", self._oauth_url),
                web.get("/auth/{provider}/credentials/status", self._credentials),
                web.post("/auth/{provider}/input", self._input),
                web.get("/auth/{provider}/state", self._state),
            ]
        )
        return app

    @web.middleware
    async def _guard(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        given = request.headers.get("Authorization", "").removeprefix("Bearer ")
        may = request.path == "/health" or hmac.compare_digest(given.encode(), self.token.encode())
        if not may:
            return _problem(401, "wrong_token", "the bearer token of this machine is needed")
        try:
            return await handler(request)
        except web.HTTPException as error:
            return _problem(error.status, "http_error", error.reason)

    async def _health(self, request: web.Request) -> web.StreamResponse:
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        return web.json_response({"status": "ok", "timestamp": now})

    async def _start(self, request: web.Request) -> web.StreamResponse:
        provider, body = request.match_info["provider"], await _json_object(request)
        session_id = body.get("sessionId")
        if not isinstance(session_id, str) or not session_id:
            return _problem(422, "invalid_session_id", "sessionId must be a UUID")
        if provider not in LOGINS:
            return _problem(404, "unknown_provider", f"there is no provider {provider}")
        if self._session is None:
            self._session = _Session(session_id, provider, LOGINS[provider])
            self._logging_in = asyncio.create_task(self._log_in(self._session))
        if (self._session.session_id, self._session.provider) != (session_id, provider):
            return _problem(409, "login_in_progress", "this machine is for another login")
        return web.json_response(self._session.state(), status=202)

    async def _log_in(self, session: _Session) -> None:
        if self._simulation.login_end is not LoginEnd.NEVER:
            await asyncio.sleep(self._simulation.login_s)
            await session.end(self._simulation.login_end)

    async def _oauth_url(self, request: web.Request) -> web.StreamResponse:
        session = self._session_for(request)
        return web.json_response(
            {
                "url": session.url,
                "ownBrowserUrl": session.url,
                "accepts": session.login.accepts,
            }
        )

    async def _credentials(self, request: web.Request) -> web.StreamResponse:
        session = self._session_for(request)
        await session.wait_until(lambda: session.step in _ENDS, _wait_s(request))
        return web.json_response(
            {
                "ready": session.step == "ready",
                "credentials": session.credentials,
                "failed": session.step == "failed",
                "reason": session.reason,
                "output": None,
            }
        )

    async def _input(self, request: web.Request) -> web.StreamResponse:
        session, body = self._session_for(request), await _json_object(request)
        if len([name for name in ("code", "callbackUrl") if body.get(name)]) != 1:
            return _problem(422, "invalid_input", "give either code or callbackUrl, as text")
        if session.step in _ENDS:
            return _problem(409, "not_waiting", "the login has ended")
        if "code=" not in str(body.get("callbackUrl") or "code="):
            return _problem(422, "invalid_input", "the address holds no code")
        await session.end(LoginEnd.CREDENTIALS)
        return web.json_response({"accepted": True}, status=202)

    async def _state(self, request: web.Request) -> web.StreamResponse:
        session = self._session_for(request)
        after = int(request.query.get("after", "-1"))
        await session.wait_until(lambda: session.version > after, _wait_s(request))
        return web.json_response(session.state())

    def _session_for(self, request: web.Request) -> _Session:
        if self._session is None or self._session.provider != request.match_info["provider"]:
            raise web.HTTPNotFound(reason="no login of this provider was started")
        return self._session


async def _json_object(request: web.Request) -> dict[str, Any]:
    try:
        body = json.loads(await request.read())
    except ValueError:
        body = None
    if not isinstance(body, dict):
        raise web.HTTPBadRequest(reason="the body is not a JSON object")
    return body


def _wait_s(request: web.Request) -> float:
    text = request.query.get("wait", "0")
    if not text.isdecimal():
        raise web.HTTPBadRequest(reason="wait is not a whole number")
    return min(float(text), _LONGEST_WAIT_S)


def _problem(status: int, code: str, detail: str) -> web.Response:
    return web.json_response({"code": code, "detail": detail}, status=status)
