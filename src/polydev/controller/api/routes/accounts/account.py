"""`/api/account…`: signing up, in and out, who one is, the password."""

from __future__ import annotations

from fastapi import Response

from polydev.controller.access import Access, Caller, RequestInfo
from polydev.controller.access.limits.csrf import csrf_token
from polydev.controller.access.sign_in.sign_ins import VIA, NewSignIn
from polydev.controller.api.http import routers
from polydev.controller.api.http.error_responses import problem_responses, public_problem_responses
from polydev.controller.api.http.services import (
    AccountCaller,
    ReadCaller,
    RequestInfoDep,
    ServicesDep,
)
from polydev.controller.api.schemas.accounts import (
    AccountView,
    PasswordChange,
    PasswordChanged,
    ProviderOfPeople,
    SignInAsked,
    SignUpAsked,
    TokenView,
    WaysIn,
)
from polydev.shared.domain import Scope
from polydev.shared.errors import AlreadyExists, NotSignedIn, PasswordRefused, TooManyRequests

router = routers.router(prefix="/api/account", tags=["account"])


@router.get("/ways", responses=public_problem_responses())
async def ways_in(services: ServicesDep) -> WaysIn:
    """How people come in here: for the page that asks them to."""
    access = services.access
    oidc = None if access.oidc_sign_in is None else ProviderOfPeople(name=access.oidc_sign_in.name)
    return WaysIn(signUp=access.sign_up, oidc=oidc, supabase=access.supabase_enabled)


@router.post(
    "/sign-up",
    status_code=201,
    responses=public_problem_responses(PasswordRefused, AlreadyExists, TooManyRequests),
)
async def sign_up(
    told: SignUpAsked, asked: RequestInfoDep, services: ServicesDep, response: Response
) -> AccountView:
    """Make an account, and be signed in: the answer sets the sign-in cookie."""
    code = None if told.invitation is None else told.invitation.get_secret_value()
    password = told.password.get_secret_value()
    begun = await services.access.accounts.sign_up(told.email, password, code, asked)
    return signed_in_view(begun, asked, services.access, response)


@router.post("/sign-in", responses=public_problem_responses(NotSignedIn, TooManyRequests))
async def sign_in(
    told: SignInAsked, asked: RequestInfoDep, services: ServicesDep, response: Response
) -> AccountView:
    """Sign in with a password: the answer sets the sign-in cookie."""
    password = told.password.get_secret_value()
    begun = await services.access.accounts.sign_in(told.email, password, asked)
    return signed_in_view(begun, asked, services.access, response)


@router.post("/sign-out", status_code=204, responses=problem_responses())
async def sign_out(caller: ReadCaller, services: ServicesDep, response: Response) -> None:
    """End the sign-in that asks."""
    await services.access.accounts.sign_out(caller)
    cookies = services.access.cookies
    response.delete_cookie(
        cookies.sign_in, secure=cookies.secure, httponly=True, samesite="lax", path="/"
    )


@router.get("", responses=problem_responses())
async def my_account(caller: ReadCaller, asked: RequestInfoDep) -> AccountView:
    """Who asks, and the CSRF token of their sign-in."""
    signed_in = caller.sign_in_id is not None and asked.cookie is not None
    return AccountView.of(caller, csrf_token(asked.cookie or "") if signed_in else None)


@router.post("/password", responses=problem_responses(PasswordRefused, TooManyRequests))
async def change_password(
    told: PasswordChange, caller: AccountCaller, services: ServicesDep
) -> PasswordChanged:
    """Another password. Every other sign-in ends; API tokens stay, and are told."""
    done = await services.access.accounts.change_password(
        caller, told.current.get_secret_value(), told.new.get_secret_value()
    )
    return PasswordChanged(
        signInsEnded=done.sign_ins_ended, tokensKept=[TokenView.of(it) for it in done.tokens_kept]
    )


def signed_in_view(
    begun: NewSignIn, asked: RequestInfo, access: Access, response: Response
) -> AccountView:
    """Give the browser its cookie, and the page what goes with it."""
    set_sign_in_cookie(begun, access, response)
    caller = Caller(begun.user, frozenset(Scope), VIA, asked.source, begun.sign_in.sign_in_id)
    return AccountView.of(caller, csrf_token(begun.secret))


def set_sign_in_cookie(begun: NewSignIn, access: Access, response: Response) -> None:
    """Give the browser its cookie."""
    response.set_cookie(
        access.cookies.sign_in,
        begun.secret,
        max_age=access.cookies.sign_in_limit_s,
        secure=access.cookies.secure,
        httponly=True,
        samesite="lax",
        path="/",
    )
