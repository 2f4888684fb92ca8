"""`/administration…`: people, invitations, hosts, machines, sessions, keys, the audit log, and
what the doctor finds. For administrators; others are told that it is not for them.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request, Response

from polydev.controller.access import ADMINISTRATOR, Caller
from polydev.controller.api.http.pagination import Page, PageParams
from polydev.controller.api.http.path_params import IdText
from polydev.controller.api.http.services import Services, ServicesDep
from polydev.controller.api.routes.admin.audit import Filters, list_audit_log
from polydev.controller.api.routes.admin.keys import list_keys
from polydev.controller.api.routes.admin.overview import (
    list_all_machines,
    list_all_sessions,
    list_hosts,
)
from polydev.controller.api.routes.admin.users import list_invitations, list_people
from polydev.controller.api.routes.system.doctor import examine
from polydev.controller.store.queries.accounts import users
from polydev.controller.store.queries.system.audit import AuditFilter
from polydev.controller.web.rendering.render import Administrator, fragment, page
from polydev.shared.domain import UserId, now
from polydev.shared.errors import NoSuchFile

router = APIRouter(include_in_schema=False)

Told = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Asked:
    """What a part of the administration is made from."""

    services: Services
    caller: Caller
    paged: Page
    filters: AuditFilter
    user: str | None
    """Of whom, where a part can be about one person."""


Loader = Callable[[Asked], Awaitable[Told]]


@dataclass(frozen=True, slots=True)
class Part:
    """A page of the administration."""

    id: str
    title: str
    symbol: str
    load: Loader

    @property
    def path(self) -> str:
        return f"/administration/{self.id}" if self.id != "people" else "/administration"


def _asked(
    caller: Administrator,
    services: ServicesDep,
    paged: PageParams,
    filters: Filters,
    user: Annotated[IdText | None, Query()] = None,
) -> Asked:
    return Asked(services, caller, paged, filters, user)


AskedByAdministrator = Annotated[Asked, Depends(_asked)]


@router.get("/administration")
async def show_administration(request: Request, asked: AskedByAdministrator) -> Response:
    """Who may come in: what is looked at most."""
    return await _show("people", request, asked)


@router.get("/administration/{part_id}")
async def show_part(part_id: str, request: Request, asked: AskedByAdministrator) -> Response:
    """One part."""
    return await _show(part_id, request, asked)


@router.get("/fragments/administration/findings")
async def examined(request: Request, asked: AskedByAdministrator) -> Response:
    """What the doctor finds, which takes a while."""
    found = await examine(asked.caller, asked.services)
    return fragment(request, "administration/findings.html", found=found)


@router.get("/fragments/administration/{part_id}")
async def part_again(part_id: str, request: Request, asked: AskedByAdministrator) -> Response:
    """One part, as it stands now."""
    part = _part(part_id)
    return fragment(request, f"administration/{part.id}.html", **await _told(part, request, asked))


async def _show(part_id: str, request: Request, asked: Asked) -> Response:
    part = _part(part_id)
    told = await _told(part, request, asked)
    return page(request, "administration.html", parts=_PARTS, part=part, **told)


async def _told(part: Part, request: Request, asked: Asked) -> Told:
    told = await part.load(asked)
    link = asked.paged.response.headers.get("link", "")
    return told | {
        "again": f"/fragments/administration/{part.id}"
        + (f"?{request.url.query}" if request.url.query else ""),
        "next": f"{part.path}?{link.partition('?')[2].partition('>')[0]}" if link else "",
        "is_first_page": asked.paged.cursor is None,
        "person": asked.user,
    }


def _part(part_id: str) -> Part:
    found = next((it for it in _PARTS if it.id == part_id), None)
    if found is None:
        raise NoSuchFile("This administration page does not exist")
    return found


async def _users(asked: Asked) -> Told:
    at = now()
    invited = await list_invitations(asked.caller, asked.services)
    return {
        "people": await list_people(asked.caller, asked.services, asked.paged),
        "invitations": [it for it in invited if it.usedAt is None and it.expiresAt > at],
        "local": ADMINISTRATOR,
    }


async def _hosts(asked: Asked) -> Told:
    return {"hosts": await list_hosts(asked.caller, asked.services)}


async def _machines(asked: Asked) -> Told:
    rows = await list_all_machines(asked.caller, asked.services, asked.paged, asked.user)
    return {"machines": rows, "names": await _names(asked, {it.user_id for it in rows})}


async def _sessions(asked: Asked) -> Told:
    rows = await list_all_sessions(asked.caller, asked.services, asked.paged, asked.user)
    return {"sessions": rows, "names": await _names(asked, {it.userId for it in rows})}


async def _keys(asked: Asked) -> Told:
    return {"keys": await list_keys(asked.caller, asked.services)}


async def _audit(asked: Asked) -> Told:
    rows = await list_audit_log(
        asked.caller, asked.services, asked.paged, asked.filters, asked.user
    )
    actors = {it.actor for it in rows} | {it.owner for it in rows if it.owner}
    return {"entries": rows, "names": await _names(asked, actors), "filters": asked.filters}


async def _doctor(asked: Asked) -> Told:
    return {}


async def _names(asked: Asked, ids: set[str]) -> dict[str, str]:
    """E-mail addresses by people's ids; who is gone has none."""
    async with asked.services.database.read() as connection:
        found = [await users.find(connection, UserId(it)) for it in sorted(ids)]
    return {it.user_id: it.email for it in found if it is not None}


_PARTS = (
    Part("people", "Users", "people", _users),
    Part("machines", "Machines", "machine", _machines),
    Part("sessions", "Sessions", "plug", _sessions),
    Part("hosts", "Hosts", "server", _hosts),
    Part("keys", "Keys", "key", _keys),
    Part("audit", "Audit log", "list", _audit),
    Part("doctor", "Doctor", "heart", _doctor),
)
