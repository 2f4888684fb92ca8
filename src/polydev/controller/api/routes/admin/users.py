"""Routes `/api/admin/people` and `/api/admin/invitations`."""

from __future__ import annotations

from datetime import datetime, timedelta

from polydev.controller.api.http import routers
from polydev.controller.api.http.openapi_responses import paged_response, problem_responses
from polydev.controller.api.http.pagination import PageParams
from polydev.controller.api.http.path_params import IdInPath
from polydev.controller.api.http.services import AdminCaller, ServicesDep
from polydev.controller.api.schemas.accounts import (
    CreatedInvitation,
    InvitationView,
    MadePassword,
    NewInvitation,
    NewRole,
    PersonView,
)
from polydev.shared.domain import UserId
from polydev.shared.errors import NoSuchToken, NoSuchUser, TooManyRequests

router = routers.router(prefix="/api/admin", tags=["administration"])

_USER = "/people/{user_id}"


@router.get("/people", responses=problem_responses() | paged_response())
async def list_people(
    caller: AdminCaller, services: ServicesDep, paged: PageParams
) -> list[PersonView]:
    """List all users, oldest account first."""
    found = await services.access.administration.users(paged.page_spec(datetime, str))
    return [
        PersonView.of(it) for it in paged.trim(found, lambda it: (it.created_at, str(it.user_id)))
    ]


@router.post(f"{_USER}/disable", responses=problem_responses(NoSuchUser))
async def disable_person(
    user_id: IdInPath, caller: AdminCaller, services: ServicesDep
) -> PersonView:
    """Disable a user: sign-ins end and API tokens are refused.

    Their machines and data stay.
    """
    done = await services.access.administration.disable(caller, UserId(user_id))
    return PersonView.of(done)


@router.post(f"{_USER}/enable", responses=problem_responses(NoSuchUser))
async def enable_person(
    user_id: IdInPath, caller: AdminCaller, services: ServicesDep
) -> PersonView:
    """Enable a user again. Their API tokens become valid again."""
    done = await services.access.administration.enable(caller, UserId(user_id))
    return PersonView.of(done)


@router.post(f"{_USER}/role", responses=problem_responses(NoSuchUser))
async def set_role(
    user_id: IdInPath, body: NewRole, caller: AdminCaller, services: ServicesDep
) -> PersonView:
    """Set the role of a user."""
    done = await services.access.administration.set_role(caller, UserId(user_id), body.role)
    return PersonView.of(done)


@router.post(f"{_USER}/password", responses=problem_responses(NoSuchUser, TooManyRequests))
async def reset_password(
    user_id: IdInPath, caller: AdminCaller, services: ServicesDep
) -> MadePassword:
    """Reset a user's password to a random one. Their sign-ins end.

    Only the local administrator (the token `admin-token`) may do this.
    """
    administration = services.access.administration
    user, password = await administration.reset_password(caller, UserId(user_id))
    return MadePassword(email=user.email, password=password)


@router.get("/invitations", responses=problem_responses())
async def list_invitations(caller: AdminCaller, services: ServicesDep) -> list[InvitationView]:
    """List all invitations, including used ones, newest first."""
    return [InvitationView.of(it) for it in await services.access.invitations.list_all()]


@router.post("/invitations", status_code=201, responses=problem_responses())
async def invite(
    body: NewInvitation, caller: AdminCaller, services: ServicesDep
) -> CreatedInvitation:
    """Create an invitation. Its code is for `POST /api/account/sign-up`."""
    lifetime = timedelta(days=body.expiresInDays)
    invitation, code = await services.access.invitations.create(
        caller, body.email, body.role, lifetime
    )
    return CreatedInvitation.of(invitation, code=code)


@router.delete(
    "/invitations/{invitation_id}", status_code=204, responses=problem_responses(NoSuchToken)
)
async def revoke_invitation(
    invitation_id: IdInPath, caller: AdminCaller, services: ServicesDep
) -> None:
    """Delete an unused invitation."""
    await services.access.invitations.revoke(caller, invitation_id)
