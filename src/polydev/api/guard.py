"""What every request passes before a router sees it: its Host, its size; and what every answer
carries.

A page that a person happens to visit must not reach the API under a name of its own (DNS
rebinding), so only names of this machine are answered.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from polydev.api import problems
from polydev.errors import BadRequest, NotAllowed, PolydevError

MAX_BODY_BYTES = 128 * 1024

_LOCAL_NAMES = ("localhost", "127.0.0.1", "[::1]")
_HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}


class Guard:
    """ASGI middleware around the whole app."""

    def __init__(self, app: ASGIApp, listen: str) -> None:
        self._app = app
        self._names = frozenset(_names(listen))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            return await self._app(scope, receive, send)
        headers = Headers(scope=scope)

        async def send_with_headers(message: Message) -> None:
            if message["type"] in ("http.response.start", "websocket.http.response.start"):
                MutableHeaders(scope=message).update(_HEADERS)
            await send(message)

        fault = self._fault(headers)
        if fault is not None:
            await problems.document(fault)(scope, receive, send_with_headers)
        elif scope["type"] == "http":
            await self._app(scope, _bounded(receive), send_with_headers)
        else:
            await self._app(scope, receive, send_with_headers)

    def _fault(self, headers: Headers) -> PolydevError | None:
        if _without_port(headers.get("host", "")) not in self._names:
            return NotAllowed(
                "This controller answers to its own name only",
                hint="Ask http://127.0.0.1 or http://localhost, and its port",
            )
        length = headers.get("content-length", "0")
        if not length.isdecimal() or int(length) > MAX_BODY_BYTES:
            return BadRequest(f"A request has at most {MAX_BODY_BYTES} bytes")
        return None


def _names(listen: str) -> Iterable[str]:
    yield from _LOCAL_NAMES
    try:
        address = ipaddress.ip_address(listen)
    except ValueError:
        yield listen.lower()
        return
    if not address.is_unspecified:
        yield f"[{address}]" if address.version == 6 else str(address)


def _without_port(host: str) -> str:
    name, colon, port = host.lower().rpartition(":")
    return name if colon and port.isdecimal() else host.lower()


def _bounded(receive: Receive) -> Receive:
    """Bodies without a length are bounded as they come."""
    seen = 0

    async def bounded() -> Message:
        nonlocal seen
        message = await receive()
        seen += len(message.get("body", b""))
        if seen > MAX_BODY_BYTES:
            raise BadRequest(f"A request has at most {MAX_BODY_BYTES} bytes")
        return message

    return bounded
