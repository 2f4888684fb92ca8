"""The API as one ASGI application. `app.py` makes and serves it."""

from __future__ import annotations

from collections.abc import Sequence

from fastapi import APIRouter, FastAPI
from starlette.types import ASGIApp

from polydev import __version__
from polydev.controller.api import openapi
from polydev.controller.api.http import errors, routers
from polydev.controller.api.http.middleware import RequestGuard
from polydev.controller.api.http.request_metrics import RequestMetrics
from polydev.controller.api.http.services import Services
from polydev.controller.api.routes.accounts import account, deletion, oidc, quotas, tokens
from polydev.controller.api.routes.admin import audit, keys, overview, users
from polydev.controller.api.routes.chats import chats, one_shot
from polydev.controller.api.routes.connect import credentials, live_view, sessions
from polydev.controller.api.routes.machines import files, machines, terminal
from polydev.controller.api.routes.machines import usage as machine_usage
from polydev.controller.api.routes.system import doctor, events, health, metrics

_ACCOUNTS = (account, tokens, oidc, quotas, users, deletion)
_MONITORING = (events, audit, metrics)
_MACHINES = (machines, machine_usage, terminal, files)


def create_api(services: Services, listen: str, public_url: str | None = None) -> ASGIApp:
    """The application; `listen` is the address that it will be served on, `public_url` where
    browsers reach it."""
    return RequestMetrics(RequestGuard(build_routes(services), listen, public_url))


def build_routes(services: Services | None, pages: Sequence[APIRouter] = ()) -> FastAPI:
    """The routes, and their description. Without services they can only be described. `pages` come
    first: for a browser, `/` is a page."""
    api = FastAPI(
        title="Polydev",
        version=__version__,
        docs_url=None,  # its pages would be fetched from elsewhere
        redoc_url=None,
    )
    api.state.services = services
    errors.install(api)
    of_services = (sessions, *_MACHINES, one_shot, chats, overview, keys, credentials)
    parts = (health, doctor, *_ACCOUNTS, *_MONITORING, *of_services, live_view)
    routers.mount(api, (*pages, *(part.router for part in parts), sessions.secret_input_router))
    openapi.describe(api)
    return api
