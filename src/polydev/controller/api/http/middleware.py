"""Check Host and size of every request.

Add security headers to every response.

A foreign web page must not reach the API under a name of its own (DNS rebinding), so only local
names and the public one are accepted. Behind a proxy that terminates TLS, that is the Host header
that the proxy passes on; X-Forwarded-Host is ignored.
"""

from __future__ import annotations

import asyncio
import ipaddress
import re
from collections.abc import Iterable
from urllib.parse import parse_qsl, urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from polydev.controller.api.http.problem_documents import problem_response
from polydev.shared.errors import BadRequest, NotAllowed, PolydevError, TooLarge
from polydev.shared.hints import Hint

MAX_BODY_BYTES = 128 * 1024
MAX_HEADERS = 100
MAX_PATH_BYTES = 4096
BODY_TIMEOUT_S = 30.0

_UPLOAD_DIGITS = 15
_UPLOAD = re.compile(r"/api/vm/[^/]+/files/content")
"""The path of `files.upload_file`."""

_LOCAL_NAMES = ("localhost", "127.0.0.1", "[::1]")
_HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}
_OVER_TLS = {"Strict-Transport-Security": "max-age=31536000"}


class RequestGuard:
    """ASGI middleware that checks requests before they reach a router."""

    def __init__(self, app: ASGIApp, listen: str, public_url: str | None) -> None:
        self._app = app
        self._names = frozenset(_allowed_hosts(listen, public_url))
        is_over_tls = (public_url or "").lower().startswith("https:")
        self._headers = _HEADERS | (_OVER_TLS if is_over_tls else {})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            return await self._app(scope, receive, send)

        async def send_with_headers(message: Message) -> None:
            if message["type"] in ("http.response.start", "websocket.http.response.start"):
                headers = MutableHeaders(scope=message)
                for name, value in self._headers.items():
                    headers.setdefault(name, value)
            await send(message)

        fault = self._fault(scope)
        if fault is not None:
            await problem_response(fault)(scope, receive, send_with_headers)
        elif scope["type"] == "http" and not _is_upload(scope):
            await self._app(scope, _limit_body(receive), send_with_headers)
        else:
            await self._app(scope, receive, send_with_headers)

    def _fault(self, scope: Scope) -> PolydevError | None:
        headers = Headers(scope=scope)
        hosts = headers.getlist("host")
        if len(hosts) != 1 or _without_port(hosts[0]) not in self._names:
            return NotAllowed(
                "Unknown host name",
                hint=Hint.USE_LOOPBACK.text(),
            )
        fault = _too_large(scope, headers.get("content-length", "0"))
        if fault is None and _is_ambiguous(scope["query_string"]):
            return BadRequest("A query parameter is given more than once")
        return fault


def _allowed_hosts(listen: str, public_url: str | None) -> Iterable[str]:
    yield from _LOCAL_NAMES
    if public_url is not None:
        yield _without_port(urlsplit(public_url.lower()).netloc)
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


def _too_large(scope: Scope, length: str) -> PolydevError | None:
    """Return the error for an oversized request; `length` is its Content-Length."""
    if len(scope["headers"]) > MAX_HEADERS:
        return TooLarge(f"More than {MAX_HEADERS} header fields")
    if len(scope.get("raw_path") or b"") + len(scope["query_string"]) > MAX_PATH_BYTES:
        return TooLarge(f"Path and query are longer than {MAX_PATH_BYTES} bytes")
    if not (length.isascii() and length.isdecimal()):
        return BadRequest("Content-Length is not a number")
    most_digits = _UPLOAD_DIGITS if _is_upload(scope) else len(str(MAX_BODY_BYTES))
    if len(length) > most_digits or (int(length) > MAX_BODY_BYTES and not _is_upload(scope)):
        return _body_too_large()
    return None


def _is_upload(scope: Scope) -> bool:
    """Check for the upload route, which has limits of its own."""
    return scope.get("method") == "PUT" and _UPLOAD.fullmatch(scope["path"]) is not None


def _is_ambiguous(query: bytes) -> bool:
    """Check for repeated parameters, which are ambiguous without lists."""
    names = [name for name, _ in parse_qsl(query.decode("latin-1"), keep_blank_values=True)]
    return len(set(names)) < len(names)


def _body_too_large() -> TooLarge:
    return TooLarge(f"The request body is larger than {MAX_BODY_BYTES} bytes")


def _limit_body(receive: Receive) -> Receive:
    """Limit size and duration of a body while it arrives."""
    size, is_whole, until = 0, False, None

    async def bounded() -> Message:
        nonlocal size, is_whole, until
        until = until or asyncio.get_running_loop().time() + BODY_TIMEOUT_S
        try:
            async with asyncio.timeout_at(None if is_whole else until):
                message = await receive()
        except TimeoutError:
            raise BadRequest(
                f"The request body did not arrive within {BODY_TIMEOUT_S:g} s"
            ) from None
        is_whole = not message.get("more_body", False)
        size += len(message.get("body", b""))
        if size > MAX_BODY_BYTES:
            raise _body_too_large()
        return message

    return bounded
