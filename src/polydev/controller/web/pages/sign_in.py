"""`/sign-in` and `/sign-up`. The page sends the forms to `/api/account/…`."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response
from starlette.responses import RedirectResponse

from polydev.controller.access.sign_in.passwords import MIN_CHARACTERS
from polydev.controller.access.tokens.admin_token import ADMINISTRATOR
from polydev.controller.api.http.services import Services, ServicesDep
from polydev.controller.api.routes.accounts.account import ways_in
from polydev.controller.store.engine.keyset import PageSpec
from polydev.controller.store.queries.accounts import users
from polydev.controller.web.rendering.render import OptionalCaller, page
from polydev.controller.web.rendering.safe_redirect import safe_next

router = APIRouter(include_in_schema=False)


@router.get("/sign-in")
async def show_sign_in(request: Request, caller: OptionalCaller, services: ServicesDep) -> Response:
    """Show the sign-in form; a signed-in user continues to the target."""
    target = safe_next(request.query_params.get("next"))
    if caller is not None:
        return RedirectResponse(target, 303)
    return page(
        request,
        "auth/sign_in.html",
        ways=await ways_in(services),
        next=target,
        is_first=await _has_no_users(services),
    )


@router.get("/sign-up")
async def show_sign_up(request: Request, caller: OptionalCaller, services: ServicesDep) -> Response:
    """Show the sign-up form."""
    if caller is not None:
        return RedirectResponse("/", 303)
    return page(
        request,
        "auth/sign_up.html",
        ways=await ways_in(services),
        min_characters=MIN_CHARACTERS,
        is_first=await _has_no_users(services),
    )


async def _has_no_users(services: Services) -> bool:
    """True if only the account of the local admin token exists."""
    async with services.database.read() as connection:
        found = await users.list_all(connection, PageSpec(2, None))
    return all(user.user_id == ADMINISTRATOR for user in found)
