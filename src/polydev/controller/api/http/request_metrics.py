"""Give each request an id; record metrics, trace and log line.

This is the outermost layer. Labels are route templates, never the requested path: a path may hold
anything, and there is no limit to their number.
"""

from __future__ import annotations

import logging
import re
import time
import uuid

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from polydev.controller.telemetry import metrics, traces
from polydev.shared.logging import context

log = logging.getLogger("polydev.controller.api")

REQUEST_ID = "X-Request-ID"

_WELL_FORMED = re.compile(r"[A-Za-z0-9._-]{8,64}")
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
_SERVER_ERROR = 500


class RequestMetrics:
    """ASGI middleware that observes every request."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            return await self._app(scope, receive, send)
        request = _Request(scope)

        async def send_with_id(message: Message) -> None:
            if message["type"] in ("http.response.start", "websocket.http.response.start"):
                request.answered(message["status"])
                MutableHeaders(scope=message)[REQUEST_ID] = request.id
            await send(message)

        with context.bound(request=request.id), traces.span("request") as span:
            try:
                await self._app(scope, receive, send_with_id)
            finally:
                request.over(span)


class _Request:
    """State of one request: its start and its response."""

    def __init__(self, scope: Scope) -> None:
        self._scope = scope
        given = Headers(scope=scope).get(REQUEST_ID, "")
        self.id = given if _WELL_FORMED.fullmatch(given) else uuid.uuid4().hex
        self._began = time.monotonic()
        self._answered: float | None = None
        self._status = 0

    def answered(self, status: int) -> None:
        self._status, self._answered = status, time.monotonic()

    def over(self, span: traces.Span) -> None:
        """Record the request; log it if it changed something or failed."""
        method, route = self._method(), self._route()
        duration_s = (self._answered or time.monotonic()) - self._began
        status = str(self._status) if self._status else "none"
        metrics.http_requests.labels(method, route, status).inc()
        if self._answered is not None and b"wait=" not in self._scope.get("query_string", b""):
            metrics.http_duration.labels(method, route).observe(duration_s)
        span.rename(f"{method} {route}")
        span.set_attributes({"http.request.method": method, "http.route": route})
        span.set_attributes(
            {"http.response.status_code": self._status, "polydev.request_id": self.id}
        )
        if method not in _SAFE_METHODS or self._status >= _SERVER_ERROR:
            level = logging.ERROR if self._status >= _SERVER_ERROR else logging.INFO
            log.log(level, "%s %s: %s after %.3f s", method, route, status, duration_s)

    def _method(self) -> str:
        if self._scope["type"] == "websocket":
            return "WEBSOCKET"
        method = self._scope["method"]
        return method if method in _METHODS else "OTHER"

    def _route(self) -> str:
        """Return the template of the route's path."""
        route = self._scope.get("route")
        return getattr(route, "path", None) or "none"
