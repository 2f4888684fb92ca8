"""`/sign-in` and `/sign-up`: the guards. The forms are sent to `/api/account/…` by the page."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response
from starlette.responses import RedirectResponse

from polydev.controller.access.sign_in.passwords import MIN_CHARACTERS
from polydev.controller.access.tokens.admin_token import ADMINISTRATOR
from polydev.controller.api.http.services import Services, ServicesDep
from polydev.controller.api.routes.accounts.account import ways_in
from polydev.controller.store.engine.keyset import PageSpec
from polydev.controller.store.queries.accounts import users
from polydev.controller.web.rendering.render import Known, page
from polydev.controller.web.rendering.safe_redirect import safe_next

router = APIRouter(include_in_schema=False)


@router.get("/sign-in")
async def show_sign_in(request: Request, caller: Known, services: ServicesDep) -> Response:
    """The form for signing in; who is signed in already goes on."""
    there = safe_next(request.query_params.get("next"))
    if caller is not None:
        return RedirectResponse(there, 303)
    return page(
        request,
        "sign_in.html",
        ways=await ways_in(services),
        next=there,
        is_first=await _nobody_is_here(services),
    )


@router.get("/sign-up")
async def show_sign_up(request: Request, caller: Known, services: ServicesDep) -> Response:
    """The form for making an account."""
    if caller is not None:
        return RedirectResponse("/", 303)
    return page(
        request,
        "sign_up.html",
        ways=await ways_in(services),
        min_characters=MIN_CHARACTERS,
        is_first=await _nobody_is_here(services),
    )


async def _nobody_is_here(services: Services) -> bool:
    """Whether no person has an account yet, but for the one who has this machine's token."""
    async with services.database.read() as connection:
        found = await users.list_all(connection, PageSpec(2, None))
    return all(user.user_id == ADMINISTRATOR for user in found)
