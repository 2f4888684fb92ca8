"""The base of all settings: environment variables, read once at start.

The controller (`controller/settings/`) and the host agent (`hostagent/settings.py`) each have a
class of their own, so that the host agent never sees `ENCRYPTION_KEY` or `DATABASE_URL`. Everything
else gets values as parameters. `docs/settings.md` lists all settings.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Self, TypeVar

from pydantic import AliasChoices, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict, SettingsError

from polydev.shared.settings import messages


class Settings(BaseSettings):
    """Fields are environment variables: `POLYDEV_` and the field's name in capitals."""

    model_config = SettingsConfigDict(
        env_prefix="POLYDEV_", frozen=True, extra="ignore", hide_input_in_errors=True
    )

    def check(self) -> Self:
        """Refuse settings that only fail in combination. Raises BadSettings."""
        return self


class CommonSettings(Settings):
    """Settings that the controller and the host agent share."""

    state_dir: Path = Path("/var/lib/polydev")
    """Database, machines, sockets and logs."""
    images_dir: Path = Path("/var/lib/polydev/golden-images")
    """Golden images. In a checkout, `bin/polydev` sets `/var/cache/polydev/golden-images`."""
    log_json: bool = False
    """Log one JSON object per line instead of text."""

    @property
    def sockets_dir(self) -> Path:
        return self.state_dir / "sockets"

    @property
    def host_socket(self) -> Path:
        """The socket of the host agent on this machine."""
        return self.sockets_dir / "hostd.sock"

    @property
    def logs_dir(self) -> Path:
        return self.state_dir / "logs"


def variable(name: str) -> Any:
    """Read a field from the environment variable `name`, without the prefix."""
    return AliasChoices(name)


S = TypeVar("S", bound=CommonSettings)


def read(kind: type[S]) -> S:
    """Read settings from the environment. Raises BadSettings that names the first bad variable."""
    try:
        settings = kind()
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise messages.bad_value(kind.model_fields, first) from None
    except SettingsError as error:
        name = re.search(r'field "(\w+)"', str(error))
        raise messages.not_json(kind.model_fields, name[1] if name else "") from None
    return settings.check()
