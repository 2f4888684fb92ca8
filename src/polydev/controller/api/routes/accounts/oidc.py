"""`/api/account/oidc/…`: signing in at the OpenID provider."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import Query, Request
from fastapi.responses import RedirectResponse

from polydev.controller.access.oidc.account_linking import Arrivals
from polydev.controller.access.oidc.oidc import ARRIVAL_LIMIT_S
from polydev.controller.api.http import routers
from polydev.controller.api.http.error_responses import open_answers
from polydev.controller.api.http.services import Question, Reach, Services
from polydev.controller.api.routes.accounts.account import set_sign_in
from polydev.shared.errors import (
    AlreadyExists,
    IssuerUnreachable,
    NotAllowed,
    NotSignedIn,
    TooManyRequests,
)

router = routers.router(prefix="/api/account/oidc", tags=["account"])

_SEE_OTHER: dict[int | str, dict[str, Any]] = {
    303: {
        "description": "Where to go on",
        "headers": {"Location": {"schema": {"type": "string", "format": "uri-reference"}}},
    }
}
_MAX_CODE = 4096
Told = Annotated[str | None, Query(max_length=_MAX_CODE)]


@router.get(
    "/start",
    status_code=303,
    response_class=RedirectResponse,
    responses=open_answers(TooManyRequests, IssuerUnreachable) | _SEE_OTHER,
)
async def start_at_provider(
    asked: Question,
    services: Reach,
    invitation: Annotated[str | None, Query(max_length=256, pattern=r"^[A-Za-z0-9_-]+$")] = None,
) -> RedirectResponse:
    """Send the browser to the provider; with an invitation, if that is needed to sign up."""
    url, cookie = await _arrivals(services).start(invitation, asked)
    answer = RedirectResponse(url, 303)
    cookies = services.access.cookies
    answer.set_cookie(
        cookies.arrival,
        cookie,
        max_age=ARRIVAL_LIMIT_S,
        secure=cookies.secure,
        httponly=True,
        samesite="lax",
        path="/",
    )
    return answer


@router.get(
    "/callback",
    status_code=303,
    response_class=RedirectResponse,
    responses=open_answers(NotSignedIn, AlreadyExists, TooManyRequests, IssuerUnreachable)
    | _SEE_OTHER,
)
async def back_from_provider(
    request: Request,
    asked: Question,
    services: Reach,
    state: Told = None,
    code: Told = None,
    iss: Told = None,
) -> RedirectResponse:
    """Receive the browser from the provider, and sign it in: the answer sets the cookie."""
    cookies = services.access.cookies
    told = {"state": state, "code": code, "iss": iss}
    begun = await _arrivals(services).finish(
        request.cookies.get(cookies.arrival),
        {name: value for name, value in told.items() if value is not None},
        asked,
    )
    answer = RedirectResponse("/", 303)
    set_sign_in(begun, services.access, answer)
    answer.delete_cookie(
        cookies.arrival, secure=cookies.secure, httponly=True, samesite="lax", path="/"
    )
    return answer


def _arrivals(services: Services) -> Arrivals:
    if services.access.arrivals is None:
        raise NotAllowed(
            "This controller has no OpenID provider",
            hint="An administrator can name one in POLYDEV_OIDC_ISSUER",
        )
    return services.access.arrivals
