"""`/api/admin/people…` and `/api/admin/invitations…`: who may come in."""

from __future__ import annotations

from datetime import datetime, timedelta

from polydev.controller.api.http import routers
from polydev.controller.api.http.error_responses import paged_response, problem_responses
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
    """Everybody, in the order in which they came."""
    found = await services.access.administration.users(paged.page_spec(datetime, str))
    return [
        PersonView.of(it) for it in paged.trim(found, lambda it: (it.created_at, str(it.user_id)))
    ]


@router.post(f"{_USER}/disable", responses=problem_responses(NoSuchUser))
async def disable_person(
    user_id: IdInPath, caller: AdminCaller, services: ServicesDep
) -> PersonView:
    """Shut somebody out at once: sign-ins end, API tokens are refused. Their things stay."""
    done = await services.access.administration.disable(caller, UserId(user_id))
    return PersonView.of(done)


@router.post(f"{_USER}/enable", responses=problem_responses(NoSuchUser))
async def enable_person(
    user_id: IdInPath, caller: AdminCaller, services: ServicesDep
) -> PersonView:
    """Let somebody in again; API tokens that they had hold again."""
    done = await services.access.administration.enable(caller, UserId(user_id))
    return PersonView.of(done)


@router.post(f"{_USER}/role", responses=problem_responses(NoSuchUser))
async def set_role(
    user_id: IdInPath, told: NewRole, caller: AdminCaller, services: ServicesDep
) -> PersonView:
    """Make somebody an administrator, or no longer one."""
    done = await services.access.administration.set_role(caller, UserId(user_id), told.role)
    return PersonView.of(done)


@router.post(f"{_USER}/password", responses=problem_responses(NoSuchUser, TooManyRequests))
async def reset_password(
    user_id: IdInPath, caller: AdminCaller, services: ServicesDep
) -> MadePassword:
    """A made-up password in place of a lost one; their sign-ins end. For the machine's own
    administrator alone."""
    administration = services.access.administration
    user, password = await administration.reset_password(caller, UserId(user_id))
    return MadePassword(email=user.email, password=password)


@router.get("/invitations", responses=problem_responses())
async def list_invitations(caller: AdminCaller, services: ServicesDep) -> list[InvitationView]:
    """All invitations, used ones too, the newest first."""
    return [InvitationView.of(it) for it in await services.access.invitations.list_all()]


@router.post("/invitations", status_code=201, responses=problem_responses())
async def invite(
    told: NewInvitation, caller: AdminCaller, services: ServicesDep
) -> CreatedInvitation:
    """Invite somebody; the code is for `POST /api/account/sign-up`."""
    lifetime = timedelta(days=told.expiresInDays)
    invitation, code = await services.access.invitations.create(
        caller, told.email, told.role, lifetime
    )
    return CreatedInvitation.of(invitation, code=code)


@router.delete(
    "/invitations/{invitation_id}", status_code=204, responses=problem_responses(NoSuchToken)
)
async def revoke_invitation(
    invitation_id: IdInPath, caller: AdminCaller, services: ServicesDep
) -> None:
    """Take back an invitation that nobody has used."""
    await services.access.invitations.revoke(caller, invitation_id)
