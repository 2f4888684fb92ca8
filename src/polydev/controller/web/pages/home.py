"""`/`: the CLIs and how each stands. For what is no browser, a line of text instead."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request, Response
from starlette.responses import PlainTextResponse

from polydev.controller.access import Caller
from polydev.controller.api.http.services import Services, ServicesDep
from polydev.controller.api.routes.system.health import get_greeting
from polydev.controller.store.engine.keyset import PageSpec
from polydev.controller.store.queries.connect import credentials, sessions
from polydev.controller.store.queries.machines import machines
from polydev.controller.web.rendering.provider_status import UserRecords, make_cards
from polydev.controller.web.rendering.render import Signed, fragment, page, signed_in
from polydev.shared.domain import now
from polydev.shared.providers import all_providers

router = APIRouter(include_in_schema=False)

_RECENT = PageSpec(60, None)
"""So many sessions are looked through for how the last try ended."""


@router.get("/")
async def show_home(request: Request, services: ServicesDep) -> Response:
    """The home page."""
    if "text/html" not in request.headers.get("accept", ""):
        return PlainTextResponse(await get_greeting())
    caller = await signed_in(request)
    return page(request, "home.html", **await _told(services, caller))


@router.get("/fragments/home")
async def home_again(request: Request, caller: Signed, services: ServicesDep) -> Response:
    """The cards, as they stand now."""
    return fragment(request, "home_cards.html", **await _told(services, caller))


async def _told(services: Services, caller: Caller) -> dict[str, Any]:
    user = caller.user_id
    async with services.database.read(user) as connection:
        live = await sessions.list_page(connection, _RECENT, user_id=user, live=True)
        recent = await sessions.list_page(connection, _RECENT, user_id=user)
        records = UserRecords(
            [*live, *recent],
            await credentials.list_for_user(connection, user),
            await machines.list_for_user(connection, user),
        )
    return {"cards": make_cards(all_providers(), records, now())}
