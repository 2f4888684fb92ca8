"""`/administration…`: users, machines, sessions, hosts, keys, the audit log, health checks.

For administrators only.
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

Context = dict[str, Any]


@dataclass(frozen=True, slots=True)
class SectionQuery:
    """Query parameters of a section."""

    services: Services
    caller: Caller
    page: Page
    filters: AuditFilter
    user_id: str | None
    """Limits the section to one user."""


Loader = Callable[[SectionQuery], Awaitable[Context]]


@dataclass(frozen=True, slots=True)
class Section:
    """A page of the administration."""

    id: str
    title: str
    icon: str
    load: Loader

    @property
    def path(self) -> str:
        return f"/administration/{self.id}" if self.id != "users" else "/administration"


def _section_query(
    caller: Administrator,
    services: ServicesDep,
    paged: PageParams,
    filters: Filters,
    user: Annotated[IdText | None, Query()] = None,
    earlier_name: Annotated[IdText | None, Query(alias="person")] = None,
) -> SectionQuery:
    """Read a section's query parameters.

    Old links name the user `person`. Ignored, the parameter would show the rows of all users.
    """
    return SectionQuery(services, caller, paged, filters, user or earlier_name)


AdministratorQuery = Annotated[SectionQuery, Depends(_section_query)]


@router.get("/administration")
async def show_administration(request: Request, query: AdministratorQuery) -> Response:
    """Show the users."""
    return await _show("users", request, query)


@router.get("/administration/{section_id}")
async def show_section(section_id: str, request: Request, query: AdministratorQuery) -> Response:
    """Show a section. Raises NoSuchFile."""
    return await _show(section_id, request, query)


@router.get("/fragments/administration/findings")
async def run_checks(request: Request, query: AdministratorQuery) -> Response:
    """Run the health checks, which takes a while."""
    found = await examine(query.caller, query.services)
    return fragment(request, "administration/findings.html", found=found)


@router.get("/fragments/administration/{section_id}")
async def refresh_section(section_id: str, request: Request, query: AdministratorQuery) -> Response:
    """Render a section again. Raises NoSuchFile."""
    section = _find_section(section_id)
    context = await _context(section, request, query)
    return fragment(request, f"administration/{section.id}.html", **context)


async def _show(section_id: str, request: Request, query: SectionQuery) -> Response:
    section = _find_section(section_id)
    context = await _context(section, request, query)
    return page(request, "administration/page.html", sections=_SECTIONS, section=section, **context)


async def _context(section: Section, request: Request, query: SectionQuery) -> Context:
    context = await section.load(query)
    link = query.page.response.headers.get("link", "")
    first = request.url.remove_query_params("cursor").query
    return context | {
        "fragment": _with_query(f"/fragments/administration/{section.id}", request.url.query),
        "first": _with_query(section.path, first) if query.page.cursor else "",
        "next": _with_query(section.path, link.partition("?")[2].partition(">")[0]) if link else "",
        "user_id": query.user_id,
    }


def _with_query(path: str, query: str) -> str:
    return f"{path}?{query}" if query else path


def _find_section(section_id: str) -> Section:
    found = next((it for it in _SECTIONS if it.id == section_id), None)
    if found is None:
        raise NoSuchFile("This administration page does not exist")
    return found


async def _users(query: SectionQuery) -> Context:
    at = now()
    sent = await list_invitations(query.caller, query.services)
    return {
        "users": await list_people(query.caller, query.services, query.page),
        "invitations": [it for it in sent if it.usedAt is None and it.expiresAt > at],
        "local": ADMINISTRATOR,
    }


async def _hosts(query: SectionQuery) -> Context:
    return {"hosts": await list_hosts(query.caller, query.services)}


async def _machines(query: SectionQuery) -> Context:
    rows = await list_all_machines(query.caller, query.services, query.page, query.user_id)
    return {"machines": rows, "names": await _names(query, {it.user_id for it in rows})}


async def _sessions(query: SectionQuery) -> Context:
    rows = await list_all_sessions(query.caller, query.services, query.page, query.user_id)
    return {"sessions": rows, "names": await _names(query, {it.userId for it in rows})}


async def _keys(query: SectionQuery) -> Context:
    return {"keys": await list_keys(query.caller, query.services)}


async def _audit(query: SectionQuery) -> Context:
    rows = await list_audit_log(
        query.caller, query.services, query.page, query.filters, query.user_id
    )
    actors = {it.actor for it in rows} | {it.owner for it in rows if it.owner}
    return {"entries": rows, "names": await _names(query, actors), "filters": query.filters}


async def _doctor(query: SectionQuery) -> Context:
    return {}


async def _names(query: SectionQuery, ids: set[str]) -> dict[str, str]:
    """Return email addresses by user id; deleted users have none."""
    async with query.services.database.read() as connection:
        found = [await users.find(connection, UserId(it)) for it in sorted(ids)]
    return {it.user_id: it.email for it in found if it is not None}


_SECTIONS = (
    Section("users", "Users", "people", _users),
    Section("machines", "Machines", "machine", _machines),
    Section("sessions", "Sessions", "plug", _sessions),
    Section("hosts", "Hosts", "server", _hosts),
    Section("keys", "Keys", "key", _keys),
    Section("audit", "Audit log", "list", _audit),
    Section("doctor", "Doctor", "heart", _doctor),
)
