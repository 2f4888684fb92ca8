"""Routes `/api/admin/audit` and `/api/account/audit`: the audit log.

Administrators see all entries. A user sees their own actions and actions on their resources, but
not the network address of other users.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from typing import Annotated

from fastapi import Depends, Query
from pydantic import BaseModel, Field

from polydev.controller.access.sign_in.accounts import UNKNOWN_ACTOR
from polydev.controller.api.http import routers
from polydev.controller.api.http.openapi_responses import paged_response, problem_responses
from polydev.controller.api.http.pagination import Page, PageParams
from polydev.controller.api.http.path_params import IdText, Timestamp
from polydev.controller.api.http.services import AccountCaller, AdminCaller, ServicesDep
from polydev.controller.store.queries.system import audit
from polydev.controller.store.queries.system.audit import AuditFilter, RecordedEntry
from polydev.shared.domain import UserId

router = routers.router(prefix="/api")

_ACTION = r"^[a-z][a-z-]*\.([a-z][a-z-]*)?$"

Action = Annotated[
    str | None,
    Query(
        max_length=64,
        pattern=_ACTION,
        description="An action such as `machine.destroy`, or a prefix such as `machine.`",
    ),
]
Since = Annotated[Timestamp | None, Query(description="At or after this time")]
Until = Annotated[Timestamp | None, Query(description="Before this time")]


class AuditEntryView(BaseModel):
    """An entry of the audit log."""

    entryId: int = Field(examples=[41])  # noqa: N815  (field names of the API)
    at: datetime
    actor: str = Field(description="User id, or the part of Polydev that acted", examples=["ann"])
    action: str = Field(examples=["machine.destroy"])
    subject: str = Field(description="Id of the affected resource")
    owner: str | None = Field(description="User id of the resource's owner")
    via: str = Field(description="How the actor was authenticated", examples=["sign-in"])
    source: str = Field(description="Network address of the request", examples=["192.0.2.7"])
    reason: str

    @classmethod
    def of(cls, recorded: RecordedEntry, reader: UserId | None = None) -> AuditEntryView:
        """Return an entry; hide the source of others from `reader` (None: administrator)."""
        it = recorded.entry
        is_others = reader is not None and it.actor not in (reader, UNKNOWN_ACTOR)
        hidden = is_others and bool(it.source)
        return cls(
            entryId=recorded.entry_id,
            at=recorded.at,
            actor=it.actor,
            action=it.action,
            subject=it.subject,
            owner=it.owner,
            via="" if hidden else it.via,
            source="" if hidden else it.source,
            reason=it.reason,
        )


def _filters(
    subject: Annotated[IdText | None, Query()] = None,
    action: Action = None,
    since: Since = None,
    until: Until = None,
) -> AuditFilter:
    return AuditFilter(subject=subject, action=action, since=since, until=until)


Filters = Annotated[AuditFilter, Depends(_filters)]


@router.get(
    "/admin/audit", tags=["administration"], responses=problem_responses() | paged_response()
)
async def list_audit_log(
    caller: AdminCaller,
    services: ServicesDep,
    paged: PageParams,
    filters: Filters,
    actor: Annotated[IdText | None, Query()] = None,
    owner: Annotated[IdText | None, Query()] = None,
) -> list[AuditEntryView]:
    """List all entries of the audit log, newest first."""
    audit_filter = replace(filters, actor=actor, owner=owner)
    async with services.database.read() as connection:
        rows = await audit.list_entries(connection, audit_filter, paged.page_spec(int))
    return [AuditEntryView.of(row) for row in _trim(paged, rows)]


@router.get("/account/audit", tags=["account"], responses=problem_responses() | paged_response())
async def list_own_audit_log(
    caller: AccountCaller, services: ServicesDep, paged: PageParams, filters: Filters
) -> list[AuditEntryView]:
    """List your actions and the actions on your resources, newest first."""
    audit_filter = replace(filters, concerning=caller.user_id)
    async with services.database.read(caller.user_id) as connection:
        rows = await audit.list_entries(connection, audit_filter, paged.page_spec(int))
    return [AuditEntryView.of(row, caller.user_id) for row in _trim(paged, rows)]


def _trim(paged: Page, rows: Sequence[RecordedEntry]) -> Sequence[RecordedEntry]:
    return paged.trim(rows, lambda row: (row.entry_id,))
