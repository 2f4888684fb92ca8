"""Looks for what is wrong where the controller can see it, and says what to do: changes nothing.

`GET /api/doctor` asks `Checkup`. Each part is looked at side by side with the others and has a time
limit, so that what does not answer keeps nothing else from being told. An administrator is told
everything; a person what is about their own machines and logins.
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
from polydev.shared.host_client import Hosts

log = logging.getLogger("polydev.controller.workflows")

_LIMIT_S = 20.0


@dataclass(frozen=True, slots=True)
class HealthChecks:
    """Examines this Polydev."""

    database: Database
    hosts: Hosts
    settings: ControllerSettings

    async def run(self, user: UserId | None = None) -> list[Finding]:
        """Every finding; for a person, those that are theirs to know."""
        parts = [
            _limited("machines", machines.compare(self.database, self.hosts, user)),
            _limited("logins", clis.ask(self.database, self.hosts, user), clis.ALL_S),
        ]
        if user is None:
            parts += [
                _limited("database", databases.look(self.database)),
                _limited("hosts", vm_hosts.ask(self.database, self.hosts, self.settings)),
            ]
        found = await asyncio.gather(*parts)
        first = [Finding("controller", True, f"Version {__version__} answers")]
        return first + [finding for part in found for finding in part]


async def _limited(
    name: str, part: Awaitable[Sequence[Finding]], limit_s: float = _LIMIT_S
) -> Sequence[Finding]:
    """What a part finds; that it did not end, or broke, is a finding too."""
    try:
        async with asyncio.timeout(limit_s):
            return await part
    except TimeoutError:
        words = f"Not known: looking took more than {limit_s:g} s"
        return [Finding(name, False, words, "Look again; the controller's log may say more")]
    except PolydevError as error:
        hint = error.hint or "The controller's log says more"
        return [Finding(name, False, error.message, hint)]
    except Exception as error:
        log.error("examining %s failed: %s", name, type(error).__name__)
        words = f"It could not be examined ({type(error).__name__})"
        return [Finding(name, False, words, "The controller's log says more")]
