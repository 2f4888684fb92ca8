"""`/api/admin/people…` and `/api/admin/invitations…`: who may come in."""

from __future__ import annotations

from datetime import datetime, timedelta

from polydev.controller.api.http import routers
from polydev.controller.api.http.error_responses import answers, listing
from polydev.controller.api.http.pagination import Paged
from polydev.controller.api.http.path_params import Id
from polydev.controller.api.http.services import Administering, Reach
from polydev.controller.api.schemas.accounts import (
    CreatedInvitation,
    InvitationView,
    MadePassword,
    NewInvitation,
    NewRole,
    PersonView,
)
from polydev.shared.domain import UserId
from polydev.shared.errors import NoSuchPerson, NoSuchToken, TooManyRequests

router = routers.router(prefix="/api/admin", tags=["administration"])

_USER = "/people/{user_id}"


@router.get("/people", responses=answers() | listing())
async def list_people(caller: Administering, services: Reach, paged: Paged) -> list[PersonView]:
    """Everybody, in the order in which they came."""
    found = await services.access.administration.users(paged.span(datetime, str))
    return [
        PersonView.of(it) for it in paged.of(found, lambda it: (it.created_at, str(it.user_id)))
    ]


@router.post(f"{_USER}/disable", responses=answers(NoSuchPerson))
async def disable_person(user_id: Id, caller: Administering, services: Reach) -> PersonView:
    """Shut somebody out at once: sign-ins end, API tokens are refused. Their things stay."""
    done = await services.access.administration.disable(caller, UserId(user_id))
    return PersonView.of(done)


@router.post(f"{_USER}/enable", responses=answers(NoSuchPerson))
async def enable_person(user_id: Id, caller: Administering, services: Reach) -> PersonView:
    """Let somebody in again; API tokens that they had hold again."""
    done = await services.access.administration.enable(caller, UserId(user_id))
    return PersonView.of(done)


@router.post(f"{_USER}/role", responses=answers(NoSuchPerson))
async def set_role(
    user_id: Id, told: NewRole, caller: Administering, services: Reach
) -> PersonView:
    """Make somebody an administrator, or no longer one."""
    done = await services.access.administration.set_role(caller, UserId(user_id), told.role)
    return PersonView.of(done)


@router.post(f"{_USER}/password", responses=answers(NoSuchPerson, TooManyRequests))
async def reset_password(user_id: Id, caller: Administering, services: Reach) -> MadePassword:
    """A made-up password in place of a lost one; their sign-ins end. For the machine's own
    administrator alone."""
    administration = services.access.administration
    user, password = await administration.reset_password(caller, UserId(user_id))
    return MadePassword(email=user.email, password=password)


@router.get("/invitations", responses=answers())
async def list_invitations(caller: Administering, services: Reach) -> list[InvitationView]:
    """All invitations, used ones too, the newest first."""
    return [InvitationView.of(it) for it in await services.access.invitations.every()]


@router.post("/invitations", status_code=201, responses=answers())
async def invite(told: NewInvitation, caller: Administering, services: Reach) -> CreatedInvitation:
    """Invite somebody; the code is for `POST /api/account/sign-up`."""
    lifetime = timedelta(days=told.expiresInDays)
    invitation, code = await services.access.invitations.create(
        caller, told.email, told.role, lifetime
    )
    return CreatedInvitation.of(invitation, code=code)


@router.delete("/invitations/{invitation_id}", status_code=204, responses=answers(NoSuchToken))
async def revoke_invitation(invitation_id: Id, caller: Administering, services: Reach) -> None:
    """Take back an invitation that nobody has used."""
    await services.access.invitations.revoke(caller, invitation_id)
