"""The API as one ASGI application. `app.py` makes and serves it."""

from __future__ import annotations

from collections.abc import Sequence

from fastapi import APIRouter, FastAPI
from starlette.types import ASGIApp

from polydev import __version__
from polydev.api import (
    account,
    account_oidc,
    account_tokens,
    admin,
    audit,
    auth,
    chat,
    chats,
    credentials,
    doctor,
    events,
    files,
    general,
    keys,
    live_view,
    machine_usage,
    machines,
    metrics,
    openapi,
    people,
    problems,
    removal,
    routes,
    terminal,
    usage,
)
from polydev.api.guard import Guard
from polydev.api.observed import Observed
from polydev.api.services import Services

_ACCOUNTS = (account, account_tokens, account_oidc, usage, people, removal)
_OBSERVING = (events, audit, metrics)
_MACHINES = (machines, machine_usage, terminal, files)


def make_api(services: Services, listen: str, public_url: str | None = None) -> ASGIApp:
    """The application; `listen` is the address that it will be served on, `public_url` where
    browsers reach it."""
    return Observed(Guard(routes_of(services), listen, public_url))


def routes_of(services: Services | None, pages: Sequence[APIRouter] = ()) -> FastAPI:
    """The routes, and their description. Without services they can only be described. `pages` come
    first: for a browser, `/` is a page."""
    api = FastAPI(
        title="Polydev",
        version=__version__,
        docs_url=None,  # its pages would be fetched from elsewhere
        redoc_url=None,
    )
    api.state.services = services
    problems.install(api)
    of_services = (auth, *_MACHINES, chat, chats, admin, keys, credentials)
    parts = (general, doctor, *_ACCOUNTS, *_OBSERVING, *of_services, live_view)
    routes.serve(api, (*pages, *(part.router for part in parts), auth.plain))
    openapi.describe(api)
    return api
