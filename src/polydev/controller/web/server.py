"""ASGI application of the API, the pages and their assets.

`bootstrap.py` creates and serves it. Errors of pages are rendered as pages for browsers; errors of
the API stay problem documents.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress
from http import HTTPStatus

from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.responses import RedirectResponse
from starlette.types import ASGIApp

from polydev.controller.api.http.middleware import RequestGuard
from polydev.controller.api.http.request_metrics import RequestMetrics
from polydev.controller.api.http.services import Services
from polydev.controller.api.server import build_routes
from polydev.controller.web.pages import (
    administration,
    chat,
    connect,
    csp_report,
    home,
    machine,
    settings,
    sign_in,
    terminal,
)
from polydev.controller.web.pages import files as machine_files
from polydev.controller.web.rendering.assets import Assets
from polydev.controller.web.rendering.render import current_caller, make_site, page, site_of
from polydev.shared.errors import PolydevError

log = logging.getLogger("polydev.controller.web")

_CACHE_FOREVER = "public, max-age=31536000, immutable"
_PAGES: tuple[APIRouter, ...] = (
    home.router,
    connect.router,
    chat.router,
    machine.router,
    terminal.router,
    machine_files.router,
    sign_in.router,
    settings.router,
    administration.router,
    csp_report.router,
)

_OIDC_PREFIX = "/api/account/oidc/"
"""API paths that browsers navigate to."""

files = APIRouter(include_in_schema=False)


def make_web_app(
    services: Services, assets: Assets, listen: str, public_url: str | None = None
) -> ASGIApp:
    """Create the application.

    `listen` is the address that it is served on, `public_url` the one that browsers use.
    """
    site = build_routes(services, (files, *_PAGES))
    site.state.site = make_site(assets)
    site.state.files = {}
    for kind in (PolydevError, HTTPException, RequestValidationError, Exception):
        _render_errors(site, kind)
    return RequestMetrics(RequestGuard(site, listen, public_url))


@files.get("/static/{hash_}/{name:path}")
async def get_file(hash_: str, name: str, request: Request) -> Response:
    """Serve an asset. Browsers cache it forever, since its path changes with its content."""
    assets = site_of(request).assets
    asset = assets.find(name)
    if asset is None or hash_ != assets.hash:
        raise HTTPException(HTTPStatus.NOT_FOUND)
    cache: dict[str, tuple[bytes, bytes | None]] = request.app.state.files
    if name not in cache:
        cache[name] = await run_in_threadpool(asset.read)
    plain, compressed = cache[name]
    headers = {"Cache-Control": _CACHE_FOREVER, "Vary": "Accept-Encoding"}
    if compressed is not None and "gzip" in request.headers.get("accept-encoding", ""):
        headers["Content-Encoding"] = "gzip"
        return Response(compressed, headers=headers, media_type=asset.media_type)
    return Response(plain, headers=headers, media_type=asset.media_type)


def _render_errors(site: FastAPI, kind: type[Exception]) -> None:
    """Render errors of this kind as pages if a browser navigates; keep the API's responses."""
    api_handler: Callable[[Request, Exception], Awaitable[Response]]
    api_handler = site.exception_handlers[kind]  # type: ignore[assignment]

    async def handle(request: Request, error: Exception) -> Response:
        response = await api_handler(request, error)
        if not _is_navigation(request):
            return response
        if response.status_code == HTTPStatus.SEE_OTHER:
            return RedirectResponse(response.headers["location"], HTTPStatus.SEE_OTHER)
        try:
            return await _error_page(request, error, response.status_code)
        except Exception:
            log.exception("cannot render an error page")
            return response

    site.add_exception_handler(kind, handle)


def _is_navigation(request: Request) -> bool:
    path = request.url.path
    is_page = not path.startswith(("/api/", "/static/", "/fragments/"))
    return (
        (is_page or path.startswith(_OIDC_PREFIX))
        and request.method in ("GET", "HEAD")
        and "text/html" in request.headers.get("accept", "")
    )


async def _error_page(request: Request, error: Exception, status: int) -> Response:
    if getattr(request.state, "caller", None) is None:
        with suppress(PolydevError):
            await current_caller(request)
    known = error if isinstance(error, PolydevError) else None
    return page(
        request,
        "error.html",
        status=status,
        code=status,
        detail=known.message if known else "",
        hint=known.hint if known else "",
    )
