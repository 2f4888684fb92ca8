"""Assemble the API as one ASGI application; `bootstrap.py` serves it."""

from __future__ import annotations

from collections.abc import Sequence

from fastapi import APIRouter, FastAPI
from starlette.types import ASGIApp

from polydev import __version__
from polydev.controller.api import openapi
from polydev.controller.api.http import problem_documents, routers
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
    """Create the application.

    `listen` is the address that it is served on, `public_url` the address that browsers use.
    """
    return RequestMetrics(RequestGuard(build_routes(services), listen, public_url))


def build_routes(services: Services | None, pages: Sequence[APIRouter] = ()) -> FastAPI:
    """Build the FastAPI app with all routes.

    Without services it can only describe itself. `pages` come first: for a browser, `/` is a page.
    """
    api = FastAPI(
        title="Polydev",
        version=__version__,
        docs_url=None,  # these pages load scripts from other sites
        redoc_url=None,
    )
    api.state.services = services
    problem_documents.install(api)
    of_services = (sessions, *_MACHINES, one_shot, chats, overview, keys, credentials)
    parts = (health, doctor, *_ACCOUNTS, *_MONITORING, *of_services, live_view)
    routers.mount(api, (*pages, *(part.router for part in parts), sessions.secret_input_router))
    openapi.describe(api)
    return api
