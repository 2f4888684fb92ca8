"""`/api/account/tokens…` and `/api/account/sign-ins…`: what else is let in as oneself."""

from __future__ import annotations

from polydev.api import routes
from polydev.api.account_schemas import CreatedToken, NewToken, SignInView, TokenView
from polydev.api.answers import answers
from polydev.api.ids import Id
from polydev.api.services import OwningAccount, Reach
from polydev.errors import NoSuchToken, QuotaExceeded

router = routes.router(prefix="/api/account", tags=["account"])


@router.get("/tokens", responses=answers())
async def list_tokens(caller: OwningAccount, services: Reach) -> list[TokenView]:
    """The caller's API tokens, the newest first. What they are is told at their making only."""
    return [TokenView.of(it) for it in await services.access.tokens.of(caller)]


@router.post("/tokens", status_code=201, responses=answers(QuotaExceeded))
async def create_token(told: NewToken, caller: OwningAccount, services: Reach) -> CreatedToken:
    """Make an API token, with no more scopes than the caller has."""
    token, text = await services.access.tokens.create(
        caller, told.name, frozenset(told.scopes), told.lifetime
    )
    return CreatedToken.of(token, token=text)


@router.delete("/tokens/{token_id}", status_code=204, responses=answers(NoSuchToken))
async def revoke_token(token_id: Id, caller: OwningAccount, services: Reach) -> None:
    """Revoke a token: it is refused from now on."""
    await services.access.tokens.revoke(caller, token_id)


@router.get("/sign-ins", responses=answers())
async def list_sign_ins(caller: OwningAccount, services: Reach) -> list[SignInView]:
    """Where the caller is signed in, the one seen last first."""
    return [SignInView.of(it, caller) for it in await services.access.sign_ins.of(caller)]


@router.delete("/sign-ins/{sign_in_id}", status_code=204, responses=answers(NoSuchToken))
async def end_sign_in(sign_in_id: Id, caller: OwningAccount, services: Reach) -> None:
    """Sign another browser of the caller's out."""
    await services.access.sign_ins.end(caller, sign_in_id)
