"""Quotas: how many machines, how much memory and how many sessions a person may have at once.

What a person uses is read in the transaction that adds to it, under that person's lock, so that two
requests at once cannot both take what is left. A session that waits in the queue counts with what
it will need. Administrators are not held to quotas, nor what they do for others.
"""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy.ext.asyncio import AsyncConnection

from polydev.controller.store.engine import locks
from polydev.controller.store.queries.accounts import users
from polydev.controller.store.queries.machines import capacity
from polydev.shared.domain import MachineSize, Usage, UserId
from polydev.shared.errors import NoSuchUser, QuotaExceeded


@dataclass(frozen=True, slots=True)
class Quotas:
    """The limits of each person, and what sessions' machines need."""

    machines: int
    memory_mib: int
    sessions: int
    cli: MachineSize
    browser: MachineSize

    async def usage(self, connection: AsyncConnection, user_id: UserId) -> Usage:
        """What a person uses, and what their waiting sessions will use."""
        found = await capacity.get_user_usage(connection, user_id)
        if not found.waiting:
            return found.usage
        cli_mib = 0 if found.has_running_cli else self.cli.memory_mib
        return Usage(
            machines=found.usage.machines + (not found.has_cli),
            memory_mib=found.usage.memory_mib + cli_mib + found.waiting * self.browser.memory_mib,
            sessions=found.usage.sessions,
        )

    @property
    def limits(self) -> Usage:
        """As much as a person may use."""
        return Usage(self.machines, self.memory_mib, self.sessions)

    async def require_machine(
        self, connection: AsyncConnection, user_id: UserId, size: MachineSize
    ) -> None:
        """Raises QuotaExceeded unless the person may have one machine more."""
        used = await self.usage(connection, user_id)
        self._require("machines", used.machines, 1, self.machines)
        self._require("MiB of memory", used.memory_mib, size.memory_mib, self.memory_mib)

    async def require_start(
        self, connection: AsyncConnection, user_id: UserId, size: MachineSize
    ) -> None:
        """Raises QuotaExceeded unless the person may run one machine more."""
        used = await self.usage(connection, user_id)
        self._require("MiB of memory", used.memory_mib, size.memory_mib, self.memory_mib)

    async def require_session(self, connection: AsyncConnection, user_id: UserId) -> None:
        """Raises QuotaExceeded unless the person may begin one session more."""
        found = await capacity.get_user_usage(connection, user_id)
        used = await self.usage(connection, user_id)
        self._require("connect sessions", used.sessions, 1, self.sessions)
        if not found.has_cli and not found.waiting:
            self._require("machines", used.machines, 1, self.machines)
        cli_mib = 0 if found.has_running_cli or found.waiting else self.cli.memory_mib
        more_mib = cli_mib + self.browser.memory_mib
        self._require("MiB of memory", used.memory_mib, more_mib, self.memory_mib)

    def _require(self, what: str, used: int, more: int, limit: int) -> None:
        if used + more > limit:
            hint, variable = _WHAT_TO_DO[what]
            raise QuotaExceeded(
                f"You may have {limit} {what} at once ({variable}); you use {used}, and this "
                f"takes {more} more",
                hint=hint,
            )


async def lock_user(connection: AsyncConnection, user_id: UserId) -> None:
    """Let nobody else add to what a person has until this transaction ends.

    Raises NoSuchUser if they are not there, or are being deleted.
    """
    await locks.acquire(connection, "person", user_id)
    user = await users.find(connection, user_id)
    if user is None or user.deleting_at is not None:
        raise NoSuchUser(f"There is no person {user_id}")


_FREE_MEMORY = "Stop or destroy machines, or wait until your logins have ended"
_WHAT_TO_DO = {
    "machines": ("Destroy a machine that you do not need", "POLYDEV_QUOTA_MACHINES"),
    "MiB of memory": (_FREE_MEMORY, "POLYDEV_QUOTA_MEMORY_MIB"),
    "connect sessions": ("Complete or cancel one of your logins", "POLYDEV_QUOTA_SESSIONS"),
}
