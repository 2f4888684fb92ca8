"""`/`: the state of each CLI; a line of text for clients that are not browsers."""

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
"""Sessions in which the result of a CLI's last attempt is searched."""


@router.get("/")
async def show_home(request: Request, services: ServicesDep) -> Response:
    """Show the home page."""
    if "text/html" not in request.headers.get("accept", ""):
        return PlainTextResponse(await get_greeting())
    caller = await signed_in(request)
    return page(request, "home/page.html", **await _cards(services, caller))


@router.get("/fragments/home")
async def refresh_home(request: Request, caller: Signed, services: ServicesDep) -> Response:
    """Render the cards again."""
    return fragment(request, "home/cards.html", **await _cards(services, caller))


async def _cards(services: Services, caller: Caller) -> dict[str, Any]:
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
