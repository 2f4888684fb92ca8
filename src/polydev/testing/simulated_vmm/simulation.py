"""How simulated machines are to behave: what a test or a load run may choose."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

from pydantic import TypeAdapter, ValidationError

from polydev.hostagent.settings import HostSettings
from polydev.shared.errors import BadSettings


class LoginEnd(StrEnum):
    """How the logins of simulated browser machines end."""

    CREDENTIALS = "credentials"
    FAILURE = "failure"
    NEVER = "never"
    """They wait for a pasted code, like a person who walked away."""


@dataclass(frozen=True, slots=True)
class Simulation:
    """Delays in seconds; the defaults are a machine that does everything at once."""

    boot_s: float = 0
    becomes_ready: bool = True
    browser_s: float = 0
    """How long a browser takes to be up, once its machine is."""
    renews: bool = True
    """Whether clones of warm machines become machines of their own."""
    renew_s: float = 0
    """How long that takes."""
    login_s: float = 0
    """From the start of a login until its end."""
    login_end: LoginEnd = LoginEnd.CREDENTIALS
    answer_s: float = 0
    """How long a CLI takes for a chat turn."""
    channel: Literal["ssh", "direct"] = "ssh"
    """`direct` leaves SSH out: for load runs, which are not about what both ends of it cost."""

    @classmethod
    def from_settings(cls, settings: HostSettings) -> Simulation:
        """Read POLYDEV_SIMULATION. Raises BadSettings."""
        try:
            return TypeAdapter(cls).validate_python(settings.simulation)
        except ValidationError as error:
            where = ".".join(str(part) for part in error.errors()[0]["loc"])
            raise BadSettings(
                f"POLYDEV_SIMULATION is not usable: there is no `{where}` of that kind in a"
                " simulation",
                hint=f"There are: {', '.join(cls.__dataclass_fields__)}",
            ) from None
