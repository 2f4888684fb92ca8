"""Dependencies of the routes: the controller's services and the caller."""

from __future__ import annotations

import hmac
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Annotated, cast

from fastapi import Depends, Security
from fastapi.security import APIKeyCookie, HTTPBearer, SecurityScopes
from pydantic import SecretStr
from starlette.requests import HTTPConnection

from polydev.controller.access import Access, Caller, RequestInfo
from polydev.controller.access.limits.client_address import client_address
from polydev.controller.access.sign_in.cookies import SIGN_IN
from polydev.controller.chat import Chats, OneShotTurns
from polydev.controller.store.engine.database import Database
from polydev.controller.store.queries.accounts import users
from polydev.controller.workflows.accounts.account_deletion import AccountDeletion
from polydev.controller.workflows.connect.connect import Connect
from polydev.controller.workflows.connect.connect_by_key import ConnectByKey
from polydev.controller.workflows.credentials.credential_lifecycle import CredentialLifecycle
from polydev.controller.workflows.credentials.key_rotation import KeyRotation
from polydev.controller.workflows.health import HealthChecks
from polydev.controller.workflows.machines.machine_commands import MachineCommands
from polydev.controller.workflows.machines.resume_on_use import ResumeOnUse
from polydev.shared.domain import Scope, UserId
from polydev.shared.errors import NoSuchUser, PolydevError, Unavailable
from polydev.shared.host_client import HostClients
from polydev.shared.logging import context

CSRF_HEADER = "X-CSRF-Token"

# For the OpenAPI document only; `Access` checks the credentials.
_BEARER = HTTPBearer(
    scheme_name="bearer",
    description="An API token; its scopes limit what it may do",
    auto_error=False,
)
_COOKIE = APIKeyCookie(
    name=SIGN_IN,
    scheme_name="signIn",
    description="Set by signing in; requests that change something also need X-CSRF-Token. "
    f"Over https the cookie is named `__Host-{SIGN_IN}`",
    auto_error=False,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Services:
    """The parts of the controller that routes use."""

    database: Database
    access: Access
    hosts: HostClients
    connect: Connect
    by_key: ConnectByKey
    machines: MachineCommands
    chats: Chats
    one_shot_turns: OneShotTurns
    key_rotation: KeyRotation
    credential_lifecycle: CredentialLifecycle
    account_deletion: AccountDeletion
    health_checks: HealthChecks
    resume_on_use: ResumeOnUse
    file_limit_bytes: int = 256 * 1024 * 1024
    """Size limit of file uploads and downloads."""
    metrics_token: SecretStr | None = None
    """Opens `/metrics`, besides the tokens of administrators."""


def get_services(connection: HTTPConnection) -> Services:
    """Return the services of the controller that serves this connection."""
    return cast(Services, connection.app.state.services)


def get_request_info(connection: HTTPConnection) -> RequestInfo:
    """Extract the parts of a request that authenticate its caller."""
    access, headers = get_services(connection).access, connection.headers
    peer = connection.client.host if connection.client else ""
    return RequestInfo(
        authorization=headers.get("authorization"),
        cookie=access.cookies.get_sign_in(connection.cookies),
        csrf=headers.get(CSRF_HEADER),
        changes=connection.scope.get("method", "GET") not in ("GET", "HEAD"),
        source=client_address(peer, headers.getlist("x-forwarded-for"), access.trusted_proxies),
        origin=headers.get("origin"),
        host=headers.get("host", ""),
        websocket=connection.scope["type"] == "websocket",
        user_agent=headers.get("user-agent", ""),
    )


async def authenticate(connection: HTTPConnection) -> Caller:
    """Return the caller. Raises NotSignedIn, NotAllowed."""
    caller = await get_services(connection).access.authenticate(get_request_info(connection))
    context.bind(user=caller.user_id)
    return caller


def permission_check(connection: HTTPConnection, scope: Scope) -> Callable[[], Awaitable[bool]]:
    """Return a check that the caller of a stream still has access.

    A sign-in can end, and a token can be revoked, while a stream is open.
    """

    async def check() -> bool:
        try:
            (await authenticate(connection)).require(scope)
        except Unavailable:
            return True  # cannot be checked now; checked again later
        except PolydevError:
            return False
        return True

    return check


async def resolve_user(services: Services, caller: Caller, user_id: str | None) -> UserId:
    """Return the user to act for; only administrators may choose one.

    Raises: NotAllowed; NoSuchUser (for administrators only).
    """
    user = caller.resolve_user(user_id)
    if user != caller.user_id:
        async with services.database.read() as connection:
            found = await users.find(connection, user)
            if found is None or found.deleting_at is not None:
                raise NoSuchUser(f"There is no user {user}")
    return user


async def _require_scopes(
    connection: HTTPConnection,
    needed: SecurityScopes,
    _bearer: Annotated[object, Security(_BEARER)],
    _cookie: Annotated[object, Security(_COOKIE)],
) -> Caller:
    caller = await authenticate(connection)
    for scope in needed.scopes:
        caller.require(Scope(scope))
    return caller


async def _require_metrics_access(
    connection: HTTPConnection, _bearer: Annotated[object, Security(_BEARER)]
) -> None:
    token = get_services(connection).metrics_token
    scheme, _, given = connection.headers.get("authorization", "").partition(" ")
    expected = token.get_secret_value().encode() if token else b""
    is_it = hmac.compare_digest(given.strip().encode("utf-8", "replace"), expected)
    if not (expected and is_it and scheme.lower() == "bearer"):
        (await authenticate(connection)).require(Scope.ADMIN)


ServicesDep = Annotated[Services, Depends(get_services)]
RequestInfoDep = Annotated[RequestInfo, Depends(get_request_info)]
"""For routes before sign-in."""

# The caller, if they have this scope; otherwise 401 or 403.
ReadCaller = Annotated[Caller, Security(_require_scopes, scopes=[Scope.READ])]
ConnectCaller = Annotated[Caller, Security(_require_scopes, scopes=[Scope.CONNECT])]
MachinesCaller = Annotated[Caller, Security(_require_scopes, scopes=[Scope.MACHINES])]
ChatCaller = Annotated[Caller, Security(_require_scopes, scopes=[Scope.CHAT])]
AccountCaller = Annotated[Caller, Security(_require_scopes, scopes=[Scope.ACCOUNT])]
AdminCaller = Annotated[Caller, Security(_require_scopes, scopes=[Scope.ADMIN])]

MetricsAccess = Annotated[None, Depends(_require_metrics_access)]
"""Requires an administrator or POLYDEV_METRICS_TOKEN."""
