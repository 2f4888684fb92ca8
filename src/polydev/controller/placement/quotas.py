"""Quotas per user: machines, memory and connect sessions at once.

Usage is read in the transaction that adds to it, under the user's lock, so two concurrent requests
cannot both take what is left. A queued session counts with what it will need. Quotas do not apply
to administrators, nor to what they do for others.
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
    """Limits per user, and the sizes of sessions' machines."""

    machines: int
    memory_mib: int
    sessions: int
    cli: MachineSize
    browser: MachineSize

    async def usage(self, connection: AsyncConnection, user_id: UserId) -> Usage:
        """Return a user's usage, including what queued sessions will use."""
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
        """The quotas as amounts."""
        return Usage(self.machines, self.memory_mib, self.sessions)

    async def require_machine(
        self, connection: AsyncConnection, user_id: UserId, size: MachineSize
    ) -> None:
        """Check that the user may have one more machine. Raises QuotaExceeded."""
        used = await self.usage(connection, user_id)
        self._require("machines", used.machines, 1, self.machines)
        self._require("MiB of memory", used.memory_mib, size.memory_mib, self.memory_mib)

    async def require_start(
        self, connection: AsyncConnection, user_id: UserId, size: MachineSize
    ) -> None:
        """Check that the user may run one more machine. Raises QuotaExceeded."""
        used = await self.usage(connection, user_id)
        self._require("MiB of memory", used.memory_mib, size.memory_mib, self.memory_mib)

    async def require_session(self, connection: AsyncConnection, user_id: UserId) -> None:
        """Check that the user may start one more session. Raises QuotaExceeded."""
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
                f"The limit is {limit} {what} at once ({variable}): you use {used}, and this "
                f"needs {more} more",
                hint=hint,
            )


async def lock_user(connection: AsyncConnection, user_id: UserId) -> None:
    """Lock the user's resources until the transaction ends.

    Raises NoSuchUser if the account does not exist, or is being deleted.
    """
    await locks.acquire(connection, "person", user_id)
    user = await users.find(connection, user_id)
    if user is None or user.deleting_at is not None:
        raise NoSuchUser(f"There is no user {user_id}")


_FREE_MEMORY = "Stop or destroy machines, or wait until your logins end"
_WHAT_TO_DO = {
    "machines": ("Destroy an unused machine", "POLYDEV_QUOTA_MACHINES"),
    "MiB of memory": (_FREE_MEMORY, "POLYDEV_QUOTA_MEMORY_MIB"),
    "connect sessions": ("Complete or cancel a login", "POLYDEV_QUOTA_SESSIONS"),
}
