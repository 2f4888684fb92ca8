"""Removing people: `DELETE /api/account`, by themselves, and `DELETE /api/admin/people/{id}`."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field, SecretStr

from polydev.controller.api.http import routers
from polydev.controller.api.http.error_responses import problem_responses
from polydev.controller.api.http.path_params import IdInPath
from polydev.controller.api.http.services import AccountCaller, AdminCaller, ServicesDep
from polydev.controller.api.schemas.accounts import PersonView
from polydev.shared.domain import UserId
from polydev.shared.errors import NoSuchUser, TooManyRequests

router = routers.router(prefix="/api")


class Confirmation(BaseModel):
    """That they mean it."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    password: SecretStr | None = Field(
        None,
        max_length=1024,
        description="The account's; one without a password needs a sign-in of the last 10 minutes",
    )


@router.delete(
    "/account",
    status_code=202,
    responses=problem_responses(NoSuchUser, TooManyRequests),
    tags=["account"],
)
async def delete_account(
    told: Confirmation, caller: AccountCaller, services: ServicesDep
) -> PersonView:
    """Remove oneself with machines, credentials and all else. Nobody comes in from now on."""
    password = None if told.password is None else told.password.get_secret_value()
    await services.access.accounts.confirm(caller, password)
    return PersonView.of(await services.account_deletion.request(caller, caller.user_id))


@router.delete(
    "/admin/people/{user_id}",
    status_code=202,
    responses=problem_responses(NoSuchUser),
    tags=["administration"],
)
async def delete_person(
    user_id: IdInPath, caller: AdminCaller, services: ServicesDep
) -> PersonView:
    """Remove somebody with everything that is theirs; 404 once it is done."""
    return PersonView.of(await services.account_deletion.request(caller, UserId(user_id)))
