"""Routes that delete accounts: `/api/account` and `/api/admin/people/{id}`."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field, SecretStr

from polydev.controller.api.http import routers
from polydev.controller.api.http.openapi_responses import problem_responses
from polydev.controller.api.http.path_params import IdInPath
from polydev.controller.api.http.services import AccountCaller, AdminCaller, ServicesDep
from polydev.controller.api.schemas.accounts import PersonView
from polydev.shared.domain import UserId
from polydev.shared.errors import NoSuchUser, TooManyRequests

router = routers.router(prefix="/api")


class Confirmation(BaseModel):
    """Confirmation of an account's deletion."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    password: SecretStr | None = Field(
        None,
        max_length=1024,
        description="Your password. An account without one needs a sign-in younger than 10 minutes",
    )


@router.delete(
    "/account",
    status_code=202,
    responses=problem_responses(NoSuchUser, TooManyRequests),
    tags=["account"],
)
async def delete_account(
    body: Confirmation, caller: AccountCaller, services: ServicesDep
) -> PersonView:
    """Delete your account with its machines, credentials and all data.

    Sign-ins end immediately.
    """
    password = None if body.password is None else body.password.get_secret_value()
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
    """Delete a user with all machines, credentials and data.

    404 once it is done.
    """
    return PersonView.of(await services.account_deletion.request(caller, UserId(user_id)))
