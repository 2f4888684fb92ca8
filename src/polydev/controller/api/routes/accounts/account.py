"""Routes `/api/account`: sign-up, sign-in, sign-out, the account, its password."""

from __future__ import annotations

from fastapi import Response

from polydev.controller.access import Access, Caller, RequestInfo
from polydev.controller.access.limits.csrf import csrf_token
from polydev.controller.access.sign_in.sign_ins import VIA, NewSignIn
from polydev.controller.api.http import routers
from polydev.controller.api.http.openapi_responses import (
    problem_responses,
    public_problem_responses,
)
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
    """List the ways to sign up and sign in."""
    access = services.access
    oidc = None if access.oidc_sign_in is None else ProviderOfPeople(name=access.oidc_sign_in.name)
    return WaysIn(signUp=access.sign_up, oidc=oidc, supabase=access.supabase_enabled)


@router.post(
    "/sign-up",
    status_code=201,
    responses=public_problem_responses(PasswordRefused, AlreadyExists, TooManyRequests),
)
async def sign_up(
    body: SignUpAsked, request_info: RequestInfoDep, services: ServicesDep, response: Response
) -> AccountView:
    """Create an account and sign in: the response sets the sign-in cookie."""
    code = None if body.invitation is None else body.invitation.get_secret_value()
    password = body.password.get_secret_value()
    new_sign_in = await services.access.accounts.sign_up(body.email, password, code, request_info)
    return signed_in_view(new_sign_in, request_info, services.access, response)


@router.post("/sign-in", responses=public_problem_responses(NotSignedIn, TooManyRequests))
async def sign_in(
    body: SignInAsked, request_info: RequestInfoDep, services: ServicesDep, response: Response
) -> AccountView:
    """Sign in with a password: the response sets the sign-in cookie."""
    password = body.password.get_secret_value()
    new_sign_in = await services.access.accounts.sign_in(body.email, password, request_info)
    return signed_in_view(new_sign_in, request_info, services.access, response)


@router.post("/sign-out", status_code=204, responses=problem_responses())
async def sign_out(caller: ReadCaller, services: ServicesDep, response: Response) -> None:
    """End the current sign-in."""
    await services.access.accounts.sign_out(caller)
    cookies = services.access.cookies
    response.delete_cookie(
        cookies.sign_in, secure=cookies.secure, httponly=True, samesite="lax", path="/"
    )


@router.get("", responses=problem_responses())
async def my_account(caller: ReadCaller, request_info: RequestInfoDep) -> AccountView:
    """Return the caller's account, and the CSRF token of the sign-in."""
    signed_in = caller.sign_in_id is not None and request_info.cookie is not None
    return AccountView.of(caller, csrf_token(request_info.cookie or "") if signed_in else None)


@router.post("/password", responses=problem_responses(PasswordRefused, TooManyRequests))
async def change_password(
    body: PasswordChange, caller: AccountCaller, services: ServicesDep
) -> PasswordChanged:
    """Change the password.

    All other sign-ins end; API tokens stay valid and are listed.
    """
    changed = await services.access.accounts.change_password(
        caller, body.current.get_secret_value(), body.new.get_secret_value()
    )
    return PasswordChanged(
        signInsEnded=changed.sign_ins_ended,
        tokensKept=[TokenView.of(it) for it in changed.valid_tokens],
    )


def signed_in_view(
    new_sign_in: NewSignIn, request_info: RequestInfo, access: Access, response: Response
) -> AccountView:
    """Set the sign-in cookie and return the account."""
    set_sign_in_cookie(new_sign_in, access, response)
    caller = Caller(
        new_sign_in.user, frozenset(Scope), VIA, request_info.source, new_sign_in.sign_in.sign_in_id
    )
    return AccountView.of(caller, csrf_token(new_sign_in.secret))


def set_sign_in_cookie(new_sign_in: NewSignIn, access: Access, response: Response) -> None:
    """Set the sign-in cookie."""
    response.set_cookie(
        access.cookies.sign_in,
        new_sign_in.secret,
        max_age=access.cookies.sign_in_limit_s,
        secure=access.cookies.secure,
        httponly=True,
        samesite="lax",
        path="/",
    )
