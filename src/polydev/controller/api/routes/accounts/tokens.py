"""Routes `/api/account/tokens` and `/api/account/sign-ins`."""

from __future__ import annotations

from polydev.controller.api.http import routers
from polydev.controller.api.http.openapi_responses import problem_responses
from polydev.controller.api.http.path_params import IdInPath
from polydev.controller.api.http.services import AccountCaller, ServicesDep
from polydev.controller.api.schemas.accounts import CreatedToken, NewToken, SignInView, TokenView
from polydev.shared.errors import NoSuchToken, QuotaExceeded

router = routers.router(prefix="/api/account", tags=["account"])


@router.get("/tokens", responses=problem_responses())
async def list_tokens(caller: AccountCaller, services: ServicesDep) -> list[TokenView]:
    """List your API tokens, newest first, without their secrets."""
    return [TokenView.of(it) for it in await services.access.tokens.list_for(caller)]


@router.post("/tokens", status_code=201, responses=problem_responses(QuotaExceeded))
async def create_token(
    body: NewToken, caller: AccountCaller, services: ServicesDep
) -> CreatedToken:
    """Create an API token. It cannot have scopes that the caller lacks."""
    token, secret = await services.access.tokens.create(
        caller, body.name, frozenset(body.scopes), body.lifetime
    )
    return CreatedToken.of(token, token=secret)


@router.delete("/tokens/{token_id}", status_code=204, responses=problem_responses(NoSuchToken))
async def revoke_token(token_id: IdInPath, caller: AccountCaller, services: ServicesDep) -> None:
    """Revoke an API token, with immediate effect."""
    await services.access.tokens.revoke(caller, token_id)


@router.get("/sign-ins", responses=problem_responses())
async def list_sign_ins(caller: AccountCaller, services: ServicesDep) -> list[SignInView]:
    """List your sign-ins, most recently used first."""
    return [SignInView.of(it, caller) for it in await services.access.sign_ins.list_for(caller)]


@router.delete("/sign-ins/{sign_in_id}", status_code=204, responses=problem_responses(NoSuchToken))
async def end_sign_in(sign_in_id: IdInPath, caller: AccountCaller, services: ServicesDep) -> None:
    """End one of your sign-ins."""
    await services.access.sign_ins.end(caller, sign_in_id)
