"""The site as one ASGI application: the API, the pages in front of it, and their files.

`app.py` makes and serves it. Errors of a page are pages too, for whoever asked with a browser; the
API's stay problem documents.
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
from polydev.controller.web.rendering.render import known, make_site_of, page, site_of
from polydev.shared.errors import PolydevError

log = logging.getLogger("polydev.controller.web")

_FOR_EVER = "public, max-age=31536000, immutable"
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

_AT_PROVIDER = "/api/account/oidc/"
"""Where browsers go, and come back, by themselves."""

files = APIRouter(include_in_schema=False)


def make_site(
    services: Services, assets: Assets, listen: str, public_url: str | None = None
) -> ASGIApp:
    """The application; `listen` is the address that it will be served on, `public_url` where
    browsers reach it."""
    site = build_routes(services, (files, *_PAGES))
    site.state.site = make_site_of(assets)
    site.state.files = {}
    for kind in (PolydevError, HTTPException, RequestValidationError, Exception):
        _show(site, kind)
    return RequestMetrics(RequestGuard(site, listen, public_url))


@files.get("/static/{hash_}/{name:path}")
async def get_file(hash_: str, name: str, request: Request) -> Response:
    """A file that browsers keep: its path changes whenever one of them does."""
    assets = site_of(request).assets
    asset = assets.find(name)
    if asset is None or hash_ != assets.hash:
        raise HTTPException(HTTPStatus.NOT_FOUND)
    kept: dict[str, tuple[bytes, bytes | None]] = request.app.state.files
    if name not in kept:
        kept[name] = await run_in_threadpool(asset.read)
    plain, packed = kept[name]
    headers = {"Cache-Control": _FOR_EVER, "Vary": "Accept-Encoding"}
    if packed is not None and "gzip" in request.headers.get("accept-encoding", ""):
        headers["Content-Encoding"] = "gzip"
        return Response(packed, headers=headers, media_type=asset.media_type)
    return Response(plain, headers=headers, media_type=asset.media_type)


def _show(site: FastAPI, kind: type[Exception]) -> None:
    """Have such errors of pages shown as pages; those of the API stay as they are."""
    otherwise: Callable[[Request, Exception], Awaitable[Response]]
    otherwise = site.exception_handlers[kind]  # type: ignore[assignment]

    async def shown(request: Request, error: Exception) -> Response:
        answer = await otherwise(request, error)
        if not _is_for_people(request):
            return answer
        if answer.status_code == HTTPStatus.SEE_OTHER:
            return RedirectResponse(answer.headers["location"], HTTPStatus.SEE_OTHER)
        try:
            return await _error_page(request, error, answer.status_code)
        except Exception:
            log.exception("an error's page could not be made")
            return answer

    site.add_exception_handler(kind, shown)


def _is_for_people(request: Request) -> bool:
    path = request.url.path
    is_page = not path.startswith(("/api/", "/static/", "/fragments/"))
    return (
        (is_page or path.startswith(_AT_PROVIDER))
        and request.method in ("GET", "HEAD")
        and "text/html" in request.headers.get("accept", "")
    )


async def _error_page(request: Request, error: Exception, status: int) -> Response:
    if getattr(request.state, "caller", None) is None:
        with suppress(PolydevError):
            await known(request)
    told = error if isinstance(error, PolydevError) else None
    return page(
        request,
        "error.html",
        status=status,
        code=status,
        detail=told.message if told else "",
        hint=told.hint if told else "",
    )
