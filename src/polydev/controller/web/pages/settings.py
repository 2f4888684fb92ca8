"""`/settings`: connections, tokens, password, sign-ins, usage, activity, account deletion.

Each section is a fragment that the page refreshes after events.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from fastapi import APIRouter, Request, Response

from polydev.controller.access import Caller
from polydev.controller.access.sign_in.passwords import MIN_CHARACTERS
from polydev.controller.access.tokens.api_tokens import DEFAULT_DAYS, MAX_NAME
from polydev.controller.api.http.services import Services, ServicesDep
from polydev.controller.api.routes.accounts.quotas import get_usage
from polydev.controller.api.routes.accounts.tokens import list_sign_ins, list_tokens
from polydev.controller.api.routes.admin.audit import AuditEntryView
from polydev.controller.store.engine.keyset import PageSpec
from polydev.controller.store.queries.accounts import passwords
from polydev.controller.store.queries.connect import credentials
from polydev.controller.store.queries.machines import machines
from polydev.controller.store.queries.system import audit
from polydev.controller.store.queries.system.audit import AuditFilter
from polydev.controller.web.rendering.labels import SCOPE_LABELS
from polydev.controller.web.rendering.render import Signed, fragment, page
from polydev.shared.domain import Role, Scope
from polydev.shared.errors import NoSuchFile
from polydev.shared.providers import all_providers

router = APIRouter(include_in_schema=False)

_LATEST = PageSpec(12, None)

Context = dict[str, Any]
Loader = Callable[[Services, Caller], Awaitable[Context]]


@dataclass(frozen=True, slots=True)
class Section:
    """A section of the page."""

    id: str
    title: str
    icon: str
    load: Loader
    events: tuple[str, ...] = ()
    """Kinds of events after which it is refreshed."""


@router.get("/settings")
async def show_settings(request: Request, caller: Signed, services: ServicesDep) -> Response:
    """Show all settings."""
    context: Context = {}
    for section in _SECTIONS:
        context |= await section.load(services, caller)
    return page(request, "settings/page.html", sections=_SECTIONS, **context)


@router.get("/fragments/settings/{section_id}")
async def refresh_section(
    section_id: str, request: Request, caller: Signed, services: ServicesDep
) -> Response:
    """Render a section again. Raises NoSuchFile."""
    section = next((it for it in _SECTIONS if it.id == section_id and it.events), None)
    if section is None:
        raise NoSuchFile("This settings section does not exist")
    return fragment(request, f"settings/{section_id}.html", **await section.load(services, caller))


async def _connections(services: Services, caller: Caller) -> Context:
    async with services.database.read(caller.user_id) as connection:
        rows = await credentials.list_for_user(connection, caller.user_id)
        owned = {it.vm_id: it for it in await machines.list_for_user(connection, caller.user_id)}
    names = {it.id: it.name for it in all_providers()}
    return {
        "connections": [
            {
                "credential": row,
                "name": names.get(row.provider, row.provider),
                "machine": owned.get(row.vm_id) if row.vm_id else None,
            }
            for row in rows
        ],
    }


async def _tokens(services: Services, caller: Caller) -> Context:
    is_administrator = caller.user.role is Role.ADMINISTRATOR
    return {
        "tokens": await list_tokens(caller, services),
        "scopes": [
            (it, SCOPE_LABELS[it]) for it in Scope if is_administrator or it is not Scope.ADMIN
        ],
        "token_days": DEFAULT_DAYS,
        "token_name_limit": MAX_NAME,
    }


async def _password(services: Services, caller: Caller) -> Context:
    async with services.database.read() as connection:
        stored = await passwords.find_hash(connection, caller.user_id)
    return {"has_password": stored is not None, "min_characters": MIN_CHARACTERS}


async def _sign_ins(services: Services, caller: Caller) -> Context:
    return {"sign_ins": await list_sign_ins(caller, services)}


async def _usage(services: Services, caller: Caller) -> Context:
    return {"usage": await get_usage(caller, services)}


async def _activity(services: Services, caller: Caller) -> Context:
    async with services.database.read(caller.user_id) as connection:
        rows = await audit.list_entries(connection, AuditFilter(concerning=caller.user_id), _LATEST)
    return {"activity": [AuditEntryView.of(row, caller.user_id) for row in rows]}


async def _nothing(services: Services, caller: Caller) -> Context:
    return {}


_SECTIONS = (
    Section("connections", "Connections", "plug", _connections, ("credential", "machine")),
    Section("tokens", "API tokens", "key", _tokens, ("token",)),
    Section("password", "Password", "shield", _password),
    Section("sign-ins", "Sign-ins", "machine", _sign_ins, ("account",)),
    Section("usage", "Usage and limits", "heart", _usage, ("session", "machine")),
    Section("activity", "Activity", "list", _activity, ("account", "token", "credential")),
    Section("delete-account", "Delete account", "trash", _nothing),
)
