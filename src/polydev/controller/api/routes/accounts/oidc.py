"""Routes `/api/account/oidc`: sign in at the OpenID provider."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import Query, Request
from fastapi.responses import RedirectResponse

from polydev.controller.access.oidc.account_linking import OidcSignIn
from polydev.controller.access.oidc.oidc import CALLBACK_TIMEOUT_S
from polydev.controller.api.http import routers
from polydev.controller.api.http.openapi_responses import public_problem_responses
from polydev.controller.api.http.services import RequestInfoDep, Services, ServicesDep
from polydev.controller.api.routes.accounts.account import set_sign_in_cookie
from polydev.shared.errors import (
    AlreadyExists,
    IssuerUnreachable,
    NotAllowed,
    NotSignedIn,
    TooManyRequests,
)
from polydev.shared.hints import Hint

router = routers.router(prefix="/api/account/oidc", tags=["account"])

_REDIRECT: dict[int | str, dict[str, Any]] = {
    303: {
        "description": "Redirect",
        "headers": {"Location": {"schema": {"type": "string", "format": "uri-reference"}}},
    }
}
_MAX_CODE = 4096
QueryText = Annotated[str | None, Query(max_length=_MAX_CODE)]


@router.get(
    "/start",
    status_code=303,
    response_class=RedirectResponse,
    responses=public_problem_responses(TooManyRequests, IssuerUnreachable) | _REDIRECT,
)
async def start_at_provider(
    request_info: RequestInfoDep,
    services: ServicesDep,
    invitation: Annotated[str | None, Query(max_length=256, pattern=r"^[A-Za-z0-9_-]+$")] = None,
) -> RedirectResponse:
    """Redirect the browser to the provider.

    Pass an invitation if sign-up requires one.
    """
    url, cookie = await _require_oidc(services).start(invitation, request_info)
    response = RedirectResponse(url, 303)
    cookies = services.access.cookies
    response.set_cookie(
        cookies.oidc,
        cookie,
        max_age=CALLBACK_TIMEOUT_S,
        secure=cookies.secure,
        httponly=True,
        samesite="lax",
        path="/",
    )
    return response


@router.get(
    "/callback",
    status_code=303,
    response_class=RedirectResponse,
    responses=public_problem_responses(
        NotSignedIn, AlreadyExists, TooManyRequests, IssuerUnreachable
    )
    | _REDIRECT,
)
async def back_from_provider(
    request: Request,
    request_info: RequestInfoDep,
    services: ServicesDep,
    state: QueryText = None,
    code: QueryText = None,
    iss: QueryText = None,
) -> RedirectResponse:
    """Handle the provider's redirect: sign in and set the cookie."""
    cookies = services.access.cookies
    params = {"state": state, "code": code, "iss": iss}
    new_sign_in = await _require_oidc(services).finish(
        request.cookies.get(cookies.oidc),
        {name: value for name, value in params.items() if value is not None},
        request_info,
    )
    response = RedirectResponse("/", 303)
    set_sign_in_cookie(new_sign_in, services.access, response)
    response.delete_cookie(
        cookies.oidc, secure=cookies.secure, httponly=True, samesite="lax", path="/"
    )
    return response


def _require_oidc(services: Services) -> OidcSignIn:
    if services.access.oidc_sign_in is None:
        raise NotAllowed(
            "No OpenID provider is configured",
            hint=Hint.SET_OIDC_ISSUER.text(),
        )
    return services.access.oidc_sign_in
