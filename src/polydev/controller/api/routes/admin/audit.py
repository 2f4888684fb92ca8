"""`/api/admin/audit`, `/api/account/audit`: who did what to which, from where, and why.

Administrators see everything; a person sees what they did and what was done to what is theirs, but
not from where somebody else did it.
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
from polydev.controller.api.http.error_responses import paged_response, problem_responses
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
    Query(max_length=64, pattern=_ACTION, description="`machine.destroy`, or all with `machine.`"),
]
Since = Annotated[Timestamp | None, Query(description="From then on")]
Until = Annotated[Timestamp | None, Query(description="Before then")]


class AuditEntryView(BaseModel):
    """Something that was done."""

    entryId: int = Field(examples=[41])  # noqa: N815 - as it goes over the wire
    at: datetime
    actor: str = Field(description="A person's id, or what of Polydev it was", examples=["ann"])
    action: str = Field(examples=["machine.destroy"])
    subject: str = Field(description="The id of what it was done to")
    owner: str | None = Field(description="Whose that is")
    via: str = Field(description="How the actor proved who they are", examples=["sign-in"])
    source: str = Field(description="The network address that asked", examples=["192.0.2.7"])
    reason: str

    @classmethod
    def of(cls, recorded: RecordedEntry, reader: UserId | None = None) -> AuditEntryView:
        """An entry; for a person (None: an administrator) without where others did it from."""
        it = recorded.entry
        is_somebody_elses = reader is not None and it.actor not in (reader, UNKNOWN_ACTOR)
        hidden = is_somebody_elses and bool(it.source)
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
    """Everything that was done, the newest first."""
    sought = replace(filters, actor=actor, owner=owner)
    async with services.database.read() as connection:
        rows = await audit.list_entries(connection, sought, paged.page_spec(int))
    return [AuditEntryView.of(row) for row in _trim(paged, rows)]


@router.get("/account/audit", tags=["account"], responses=problem_responses() | paged_response())
async def list_own_audit_log(
    caller: AccountCaller, services: ServicesDep, paged: PageParams, filters: Filters
) -> list[AuditEntryView]:
    """What you did, and what was done to what is yours, the newest first."""
    sought = replace(filters, concerning=caller.user_id)
    async with services.database.read(caller.user_id) as connection:
        rows = await audit.list_entries(connection, sought, paged.page_spec(int))
    return [AuditEntryView.of(row, caller.user_id) for row in _trim(paged, rows)]


def _trim(paged: Page, rows: Sequence[RecordedEntry]) -> Sequence[RecordedEntry]:
    return paged.trim(rows, lambda row: (row.entry_id,))
