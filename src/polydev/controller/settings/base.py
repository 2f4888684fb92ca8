"""Settings of the controller process: address, database, keys, telemetry, retention."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field, SecretStr

from polydev.shared.errors import BadSettings
from polydev.shared.settings.base import CommonSettings, variable

_KEY_FILE_BYTES = 64 * 1024


class BaseControllerSettings(CommonSettings):
    """Address, database, keys, telemetry and retention."""

    port: int = Field(4000, ge=1, le=65535, validation_alias=variable("PORT"))
    """Port of the page and the API."""
    listen: str = "127.0.0.1"
    """Address that the controller listens on."""
    public_url: str | None = Field(None, pattern=r"^https?://[^/?#@\s]+$")
    """Address of the controller in browsers, without a path. With https, cookies are sent over
    https only. Unset: `http://localhost:<PORT>`."""

    database_url: str | None = Field(None, validation_alias=variable("DATABASE_URL"))
    """`postgresql://...`, or `sqlite:////whole/path`. Unset: SQLite in the state folder."""
    encryption_key: SecretStr | None = Field(None, validation_alias=variable("ENCRYPTION_KEY"))
    """Key that seals credentials. Required, here or in `ENCRYPTION_KEY_FILE`."""
    encryption_key_file: Path | None = Field(None, validation_alias=variable("ENCRYPTION_KEY_FILE"))
    """File that holds `ENCRYPTION_KEY`. A newline at its end is ignored."""
    other_encryption_keys: SecretStr | None = None
    """Further keys that only open, one per line, while the key is rotated."""
    other_encryption_keys_file: Path | None = None
    """File that holds `POLYDEV_OTHER_ENCRYPTION_KEYS`."""
    admin_token: SecretStr | None = None
    """The administrator's API token. Unset: created at the first start, in `admin-token`."""

    assets_dir: Path | None = None
    """`node_modules` folder with the pages' npm packages. Unset: where `make setup` installs it."""
    cache_dir: Path = Path("/var/cache/polydev")
    """Folder that `make setup` installs into."""

    metrics_token: SecretStr | None = Field(None, min_length=16)
    """Token that opens `/metrics` only. Administrators' tokens open it too."""
    otlp_endpoint: str | None = Field(None, pattern=r"^https?://[^?#@\s]+$")
    """Collector for traces (OTLP over HTTP), such as `http://127.0.0.1:4318/v1/traces`. Unset: no
    traces."""
    otlp_headers: SecretStr | None = None
    """Headers for the collector, as `name=value`, separated by commas."""
    trace_ratio: float = Field(1, ge=0, le=1)
    """Fraction of traces that is sent."""

    audit_days: int = Field(365, ge=30)
    """Retention of the audit log."""
    history_days: int = Field(90, ge=1)
    """Retention of ended sessions and destroyed machines."""
    event_days: int = Field(7, ge=1)
    """Retention of events for clients that reconnect."""
    events_each: int = Field(10_000, ge=100)
    """Number of events that are stored per user."""

    @property
    def own_url(self) -> str:
        """Origin of this controller, in the form that browsers send."""
        url = (self.public_url or f"http://localhost:{self.port}").lower()
        return url.removesuffix(":443" if url.startswith("https:") else ":80")

    @property
    def controller_dir(self) -> Path:
        """The controller's own folder: database, workflow journal, administrator's token."""
        return self.state_dir / "controller"

    def required_encryption_key(self) -> SecretStr:
        """`ENCRYPTION_KEY`, from the environment or its file. Raises BadSettings."""
        given = self.encryption_key
        if self.encryption_key_file is not None:
            given = SecretStr(_read_text("ENCRYPTION_KEY_FILE", self.encryption_key_file))
        if given is None or not given.get_secret_value():
            raise BadSettings(
                "ENCRYPTION_KEY is not set",
                hint="Set it to a long random text, for example from `openssl rand -hex 32`, and "
                "keep it safe: stored credentials cannot be opened without it",
            )
        return given

    def opening_keys(self) -> tuple[SecretStr, ...]:
        """Keys that open besides ENCRYPTION_KEY. Raises BadSettings."""
        lines = []
        if self.other_encryption_keys is not None:
            lines += self.other_encryption_keys.get_secret_value().splitlines()
        if self.other_encryption_keys_file is not None:
            path = self.other_encryption_keys_file
            lines += _read_text("POLYDEV_OTHER_ENCRYPTION_KEYS_FILE", path).splitlines()
        return tuple(SecretStr(line) for line in lines if line.strip())


def _read_text(variable: str, path: Path) -> str:
    """Content of a small text file, without newlines at its end. Raises BadSettings."""
    try:
        with path.open("rb") as file:
            return file.read(_KEY_FILE_BYTES).decode("utf-8").rstrip("\r\n")
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise BadSettings(f"{variable} is {path}, which cannot be read ({reason})") from None
