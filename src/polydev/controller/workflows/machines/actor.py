"""The actor of a machine command: originator, reason, and the user it is limited to.

The API builds one from its caller, chats from the turn's user, and the idle policy for itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from polydev.controller.access import Caller
from polydev.shared.domain import AuditEntry, Machine, UserId

CONTROLLER = "controller"


@dataclass(frozen=True, slots=True)
class Actor:
    """Originator and reason of a machine command."""

    actor: str
    via: str
    reason: str
    owner_filter: UserId | None
    """Only machines of this user. None: of all users."""
    source: str = ""

    @classmethod
    def for_caller(cls, caller: Caller, reason: str = "") -> Self:
        """Build the actor of an API request."""
        return cls(caller.user_id, caller.via, reason, caller.owner_filter, caller.source)

    @classmethod
    def for_user(cls, user_id: UserId, via: str, reason: str) -> Self:
        """Build the actor of something that a user had started."""
        return cls(user_id, via, reason, user_id)

    @classmethod
    def for_controller(cls, via: str, reason: str) -> Self:
        """Build the actor of the controller's own action."""
        return cls(CONTROLLER, via, reason, None)

    def entry(self, action: str, machine: Machine) -> AuditEntry:
        """Build the audit log entry."""
        owner = machine.user_id
        return AuditEntry(
            self.actor, action, machine.vm_id, owner, self.via, self.source, self.reason
        )
