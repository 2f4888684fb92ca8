"""Why a machine sleeps or wakes, and by whom: for the audit log, and for whose machines it may be.

`machine_requests.py` is given one with each such wish: by the API from its caller, by chats from
the turn's person, by the idle policy from itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from polydev.controller.access import Caller
from polydev.shared.domain import AuditEntry, Machine, UserId

CONTROLLER = "controller"


@dataclass(frozen=True, slots=True)
class Actor:
    """Who has it done, by what way, and why."""

    actor: str
    via: str
    reason: str
    owner_filter: UserId | None
    """Whose machines it may be; None: anybody's."""
    source: str = ""

    @classmethod
    def for_caller(cls, caller: Caller, reason: str = "") -> Self:
        """Somebody asks for it, or for something that needs it."""
        return cls(caller.user_id, caller.via, reason, caller.owner_filter, caller.source)

    @classmethod
    def for_user(cls, user_id: UserId, via: str, reason: str) -> Self:
        """Something that a person had asked for needs it now."""
        return cls(user_id, via, reason, user_id)

    @classmethod
    def for_controller(cls, via: str, reason: str) -> Self:
        """The controller sees to it by itself."""
        return cls(CONTROLLER, via, reason, None)

    def entry(self, action: str, machine: Machine) -> AuditEntry:
        """What the audit log says of it."""
        owner = machine.user_id
        return AuditEntry(
            self.actor, action, machine.vm_id, owner, self.via, self.source, self.reason
        )
