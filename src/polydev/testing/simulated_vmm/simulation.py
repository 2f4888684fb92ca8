"""Parameters of simulated machines, for tests and load tests."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

from pydantic import TypeAdapter, ValidationError

from polydev.hostagent.settings import HostSettings
from polydev.shared.errors import BadSettings


class LoginEnd(StrEnum):
    """Outcome of logins in simulated browser machines."""

    CREDENTIALS = "credentials"
    FAILURE = "failure"
    NEVER = "never"
    """They wait for a pasted code, as if the user had left."""


@dataclass(frozen=True, slots=True)
class Simulation:
    """Delays in seconds; by default everything happens at once."""

    boot_s: float = 0
    becomes_ready: bool = True
    browser_s: float = 0
    """From the machine's readiness until its browser is up."""
    renews: bool = True
    """False makes the renewal of clones fail."""
    renew_s: float = 0
    """Duration of a clone's renewal."""
    login_s: float = 0
    """From the start of a login until its end."""
    login_end: LoginEnd = LoginEnd.CREDENTIALS
    answer_s: float = 0
    """Duration of a CLI's chat turn."""
    channel: Literal["ssh", "direct"] = "ssh"
    """`direct` bypasses SSH, for load tests."""

    @classmethod
    def from_settings(cls, settings: HostSettings) -> Simulation:
        """Read POLYDEV_SIMULATION. Raises BadSettings."""
        try:
            return TypeAdapter(cls).validate_python(settings.simulation)
        except ValidationError as error:
            where = ".".join(str(part) for part in error.errors()[0]["loc"])
            raise BadSettings(
                f"POLYDEV_SIMULATION is invalid: a simulation has no `{where}` of that kind",
                hint=f"Valid keys: {', '.join(cls.__dataclass_fields__)}",
            ) from None
