"""What the routers work with, and who asks: handed to every request that needs it."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Annotated, cast

from fastapi import Depends
from starlette.requests import HTTPConnection

from polydev.access import Access, Asked, Caller
from polydev.chat import Chats
from polydev.domain import Scope
from polydev.hosts import Host
from polydev.store.database import Database
from polydev.workflows.connect import Connect
from polydev.workflows.machines import MachineRequests

SIGN_IN_COOKIE = "polydev_sign_in"


@dataclass(frozen=True, slots=True)
class Services:
    """The parts of the controller that requests reach."""

    database: Database
    access: Access
    host: Host
    connect: Connect
    machines: MachineRequests
    chats: Chats


def _services(connection: HTTPConnection) -> Services:
    return cast(Services, connection.app.state.services)


async def caller_of(connection: HTTPConnection) -> Caller:
    """Who asks. Raises NotSignedIn."""
    asked = Asked(
        authorization=connection.headers.get("authorization"),
        cookie=connection.cookies.get(SIGN_IN_COOKIE),
        csrf=connection.headers.get("x-csrf-token"),
        changes=connection.scope.get("method", "GET") not in ("GET", "HEAD"),
        source=connection.client.host if connection.client else "",
    )
    return await _services(connection).access.caller(asked)


def _needs(scope: Scope) -> Callable[[HTTPConnection], Coroutine[None, None, Caller]]:
    async def who_may(connection: HTTPConnection) -> Caller:
        found = await caller_of(connection)
        found.require(scope)
        return found

    return who_may


Reach = Annotated[Services, Depends(_services)]

# Whoever asks, if they may do that; otherwise 401 or 403.
Reading = Annotated[Caller, Depends(_needs(Scope.READ))]
Connecting = Annotated[Caller, Depends(_needs(Scope.CONNECT))]
UsingMachines = Annotated[Caller, Depends(_needs(Scope.MACHINES))]
Chatting = Annotated[Caller, Depends(_needs(Scope.CHAT))]
OwningAccount = Annotated[Caller, Depends(_needs(Scope.ACCOUNT))]
Administering = Annotated[Caller, Depends(_needs(Scope.ADMIN))]
