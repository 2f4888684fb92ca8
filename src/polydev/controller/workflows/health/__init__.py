"""Health checks of the controller, for `GET /api/doctor`. They change nothing.

All checks run concurrently, each with a time limit, so one that hangs does not block the others.
Administrators get every finding; users get the findings of their own machines and logins.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass

from polydev import __version__
from polydev.controller.settings import ControllerSettings
from polydev.controller.store.engine.database import Database
from polydev.controller.workflows.health import clis, databases, machines, vm_hosts
from polydev.shared.domain import Finding, UserId
from polydev.shared.errors import PolydevError
from polydev.shared.host_client import HostClients

log = logging.getLogger("polydev.controller.workflows")

_LIMIT_S = 20.0


@dataclass(frozen=True, slots=True)
class HealthChecks:
    """Runs the health checks."""

    database: Database
    hosts: HostClients
    settings: ControllerSettings

    async def run(self, user: UserId | None = None) -> list[Finding]:
        """Run all checks; for a user, only those of their own resources."""
        parts = [
            _limited("machines", machines.check(self.database, self.hosts, user)),
            _limited("logins", clis.check(self.database, self.hosts, user), clis.ALL_S),
        ]
        if user is None:
            parts += [
                _limited("database", databases.check(self.database)),
                _limited("hosts", vm_hosts.check(self.database, self.hosts, self.settings)),
            ]
        found = await asyncio.gather(*parts)
        first = [Finding("controller", True, f"Version {__version__} answers")]
        return first + [finding for part in found for finding in part]


async def _limited(
    name: str, part: Awaitable[Sequence[Finding]], limit_s: float = _LIMIT_S
) -> Sequence[Finding]:
    """Run a check with a time limit. A timeout or an error is a finding too."""
    try:
        async with asyncio.timeout(limit_s):
            return await part
    except TimeoutError:
        message = f"Unknown: the check took longer than {limit_s:g} s"
        return [Finding(name, False, message, "Try again; see the controller's log")]
    except PolydevError as error:
        hint = error.hint or "See the controller's log"
        return [Finding(name, False, error.message, hint)]
    except Exception as error:
        log.error("check %s failed: %s", name, type(error).__name__)
        message = f"The check failed ({type(error).__name__})"
        return [Finding(name, False, message, "See the controller's log")]
