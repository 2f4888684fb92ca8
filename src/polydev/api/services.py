"""What the routers work with, and who asks: handed to every request that needs it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, cast

from fastapi import Depends
from starlette.requests import HTTPConnection

from polydev.access import Access
from polydev.chat import Chats
from polydev.domain import Person
from polydev.hosts import Host
from polydev.store.database import Database
from polydev.workflows.connect import Connect
from polydev.workflows.machines import MachineRequests


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


def _caller(connection: HTTPConnection) -> Person:
    """Who asks. Raises NotSignedIn."""
    return _services(connection).access.person(connection.headers.get("authorization"))


Reach = Annotated[Services, Depends(_services)]
Caller = Annotated[Person, Depends(_caller)]
