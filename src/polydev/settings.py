"""Settings: environment variables, read once at start, as SPEC section 7 lists them.

`app.py` and `hostd/__main__.py` read them; everything else gets values as parameters. The host
agent never sees `ENCRYPTION_KEY` or `DATABASE_URL`: it has a class of its own.
"""

from __future__ import annotations

import re
from enum import StrEnum
from ipaddress import IPv4Address, IPv4Network, IPv6Network, ip_address
from pathlib import Path
from typing import Annotated, Any, Self, TypeVar
from urllib.parse import urlsplit

from pydantic import AliasChoices, Field, SecretStr, ValidationError, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict, SettingsError

from polydev import settings_words
from polydev.domain import LOCAL_HOST, HostId
from polydev.errors import BadSettings
from polydev.settings_chat import ChatLimits

_HOST_NAME = r"[a-z0-9][a-z0-9-]{0,31}"

_MIN_JWT_SECRET = 32
"""RFC 7518, section 3.2: as long as HS256's hash."""


class Egress(StrEnum):
    """What machines may reach outside."""

    OPEN = "open"
    PROXY = "proxy"
    NONE = "none"


class Uplink(StrEnum):
    """How the VM namespace reaches the outside."""

    VETH = "veth"
    NONE = "none"


class SignUp(StrEnum):
    """Who may make an account."""

    OPEN = "open"
    INVITATION = "invitation"
    CLOSED = "closed"


_KEY_FILE_BYTES = 64 * 1024


def _named(name: str) -> Any:
    return AliasChoices(name)


class _Base(BaseSettings):
    model_config = SettingsConfigDict(
        env_prefix="POLYDEV_", frozen=True, extra="ignore", hide_input_in_errors=True
    )


class CommonSettings(_Base):
    """What controller and host agent both need to know."""

    state_dir: Path = Path("/var/lib/polydev")
    images_dir: Path = Path("/var/lib/polydev/golden-images")
    log_json: bool = False
    """One JSON object a line instead of lines for people."""

    def check(self) -> Self:
        """Refuse combinations that each variable alone does not show. Raises BadSettings."""
        return self

    @property
    def sockets_dir(self) -> Path:
        return self.state_dir / "sockets"

    @property
    def host_socket(self) -> Path:
        """Where the host agent listens on one machine."""
        return self.sockets_dir / "hostd.sock"

    @property
    def logs_dir(self) -> Path:
        return self.state_dir / "logs"


class HostSettings(CommonSettings):
    """The host agent's settings."""

    driver: str = Field("auto", pattern="^(auto|qemu|simulated)$")
    """`auto` probes; `simulated` runs no guest at all (load tests)."""
    simulation: dict[str, str | float | bool] = {}
    """How simulated machines behave, as JSON: vmm/simulated/simulation.py."""

    socket_group: str | None = None
    """The group that may connect to the host agent's socket, besides root."""

    netns: str = Field("polydev", pattern="^[a-z0-9][a-z0-9-]{0,31}$")
    subnet: IPv4Network = IPv4Network("192.168.100.0/24")
    gateway: IPv4Address = IPv4Address("192.168.100.1")
    first_address: IPv4Address = IPv4Address("192.168.100.5")
    dns: Annotated[tuple[IPv4Address, ...], NoDecode] = (IPv4Address("8.8.8.8"),)
    uplink: Uplink = Uplink.VETH
    uplink_netns: str | None = None
    """The namespace that holds the uplink's outer end; None: the host's own."""
    uplink_network: IPv4Network = IPv4Network("100.64.77.0/30")
    """Addresses of the uplink's two ends: the first is the outer, the second the VM namespace's."""

    egress: Egress = Egress.OPEN
    egress_proxy: str | None = Field(None, pattern=r"^http://[0-9.]+:\d{1,5}$")
    """With `egress=proxy`: `http://<IPv4 address>:<port>`, the only thing machines may reach."""
    egress_ca_file: Path | None = None
    """PEM file of additional authorities that every machine trusts."""

    channel_port_base: int = Field(22000, ge=1024, le=65000)

    warm_start: bool | None = None
    """Browser machines are cloned of one whose browser is up, where that can be had; None: unless
    machines are simulated."""
    warm_quiet_s: float = Field(60, ge=0)
    """How long nothing must be going on before that one is made: it takes two processors a while
    where machines are emulated."""

    host_memory_mib: int | None = Field(None, ge=0)
    """What this host's machines may have together; None: nearly all that the host has."""
    host_vcpus: int | None = Field(None, ge=0)
    """None: four times the host's processors."""

    @field_validator("dns", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        return tuple(value.replace(",", " ").split()) if isinstance(value, str) else value

    memory_key_dir: Path | None = None
    """Where the key to sleeping machines' memory lies; None: in the first of /run and /dev/shm that
    is a filesystem in memory. On a disk it would protect nothing."""

    def check(self) -> Self:
        """Refuse combinations that each variable alone does not show."""
        if self.egress is Egress.PROXY and not self.egress_proxy:
            raise BadSettings(
                "POLYDEV_EGRESS=proxy needs POLYDEV_EGRESS_PROXY",
                hint="Set POLYDEV_EGRESS_PROXY to http://<IPv4 address>:<port>",
            )
        if self.gateway not in self.subnet or self.first_address not in self.subnet:
            raise BadSettings(
                "POLYDEV_GATEWAY and POLYDEV_FIRST_ADDRESS must lie in POLYDEV_SUBNET",
                hint=f"POLYDEV_SUBNET is {self.subnet}",
            )
        return self


class ControllerSettings(ChatLimits, CommonSettings):
    """The controller's settings."""

    port: int = Field(4000, ge=1, le=65535, validation_alias=_named("PORT"))
    listen: str = "127.0.0.1"
    database_url: str | None = Field(None, validation_alias=_named("DATABASE_URL"))
    """SQLAlchemy URL; None: SQLite in the state folder."""
    encryption_key: SecretStr | None = Field(None, validation_alias=_named("ENCRYPTION_KEY"))
    """What seals; `required_encryption_key` reads it."""
    encryption_key_file: Path | None = Field(None, validation_alias=_named("ENCRYPTION_KEY_FILE"))
    """Holds ENCRYPTION_KEY instead of the environment; the newline at its end is not part of it."""
    other_encryption_keys: SecretStr | None = None
    """Keys that open besides ENCRYPTION_KEY, one a line: docs/operating.md, rotating it."""
    other_encryption_keys_file: Path | None = None
    admin_token: SecretStr | None = None
    """The administrator's API token; None: made at first start and kept in `admin-token`."""

    assets_dir: Path | None = None
    """The pages' npm packages, a `node_modules`; None: where `make setup` installs them."""
    cache_dir: Path = Path("/var/cache/polydev")
    """Where `make setup` installs."""

    public_url: str | None = Field(None, pattern=r"^https?://[^/?#@\s]+$")
    """Where browsers reach this controller, without a path. With https, cookies are sent over
    https alone. None: `http://localhost:<PORT>`."""
    trusted_proxies: Annotated[tuple[IPv4Network | IPv6Network, ...], NoDecode] = ()
    """Networks whose X-Forwarded-For is believed; everybody else's is ignored."""
    sign_up: SignUp = SignUp.INVITATION
    """An account comes with machines that reach the internet, so a stranger gets none unless the
    administrator says so."""
    sign_in_idle_s: float = Field(7 * 86400, gt=0)
    """How long a sign-in lives without being used."""
    sign_in_limit_s: float = Field(30 * 86400, gt=0)
    """How long a sign-in lives."""
    sign_ins_per_hour: int = Field(180, ge=6)
    """Tries from one network, a sixth of them at once; for one address, a third of that."""
    sign_ups_per_hour: int = Field(60, ge=6)
    """From one network, a sixth of them at once."""
    connects_per_hour: int = Field(60, ge=6)
    """Connect sessions that one person may start, a sixth of them at once."""

    oidc_issuer: str | None = Field(None, pattern=r"^https?://[^?#@\s]+$")
    """An OpenID provider; its discovery document lies below this URL."""
    oidc_client_id: str | None = None
    oidc_client_secret: SecretStr | None = None
    """None: a public client."""
    oidc_name: str = "single sign-on"
    """What the page calls the provider."""

    supabase_url: str | None = Field(
        None, validation_alias=_named("SUPABASE_URL"), pattern=r"^https?://[^/?#@\s]+/?$"
    )
    """A Supabase project whose people are people here."""
    supabase_service_key: SecretStr | None = Field(
        None, validation_alias=_named("SUPABASE_SERVICE_KEY")
    )
    """Not needed to accept that project's access tokens."""
    supabase_jwt_secret: SecretStr | None = Field(
        None, validation_alias=_named("SUPABASE_JWT_SECRET")
    )
    """For projects that sign with a shared secret; others' public keys are fetched."""

    metrics_token: SecretStr | None = Field(None, min_length=16)
    """Opens `/metrics` and nothing else; administrators' tokens open it too."""
    otlp_endpoint: str | None = Field(None, pattern=r"^https?://[^?#@\s]+$")
    """Where traces are sent (OTLP over HTTP), such as `http://127.0.0.1:4318/v1/traces`; None:
    nowhere."""
    otlp_headers: SecretStr | None = None
    """What the collector wants to be told, as `name=value`, separated by commas."""
    trace_ratio: float = Field(1, ge=0, le=1)
    """Which part of all traces is sent."""
    audit_days: int = Field(365, ge=30)
    """For how long the audit log is kept."""
    history_days: int = Field(90, ge=1)
    """How long sessions that ended, and machines that were destroyed, can be looked up."""
    event_days: int = Field(7, ge=1)
    """For how long events are kept for those who come back."""
    events_each: int = Field(10_000, ge=100)
    """How many events of each person are kept."""

    hosts: Annotated[tuple[tuple[HostId, Path], ...], NoDecode] = ()
    """VM hosts, as `name=/path/of/its/hostd.sock` separated by spaces or commas; none: `local`,
    the host agent beside this controller."""
    host_period_s: float = Field(5, gt=0, le=60)
    """How often each host is asked how it is."""
    reconcile_period_s: float = Field(30, gt=0)
    """How often rows, workflows and hosts are compared and put right."""
    host_unseen_limit_s: float = Field(20, gt=0)
    """A host that has not answered for so long is given no machines."""
    host_dead_limit_s: float = Field(45, gt=0)
    """A host that has not answered for so long loses the machines that were still being made."""
    sessions_at_once: int = Field(16, ge=1)
    """Connect sessions of everybody that are underway at once; those that wait for their person do
    not count, and others wait for their turn."""
    queue_limit_s: float = Field(600, gt=0)
    """How long a connect session may wait for room."""

    quota_machines: int = Field(4, ge=0)
    """Each person's own, besides the browser machines of their sessions."""
    quota_memory_mib: int = Field(12288, ge=0)
    """Of all machines of a person that run, their sessions' too."""
    quota_sessions: int = Field(3, ge=0)
    """Connect sessions of a person at once."""

    file_limit_mib: int = Field(256, ge=1, le=65536)
    """The largest file that people bring into their machines, or out of them."""

    browser_memory_mib: int = Field(2048, ge=512)
    browser_vcpus: int = Field(2, ge=1)
    browser_disk_mib: int = Field(6144, ge=256)
    cli_memory_mib: int | None = Field(None, ge=256)
    """None: as much as the provider's CLI needs."""
    cli_vcpus: int = Field(1, ge=1)
    cli_disk_mib: int = Field(4096, ge=256)

    machine_limit_s: float = Field(60, gt=0)
    healthy_limit_s: float = Field(60, gt=0)
    login_start_limit_s: float = Field(60, gt=0)
    """Claude Code takes nearly 30 s to tell its URL where machines are emulated in software."""
    person_limit_s: float = Field(900, gt=0)
    capture_limit_s: float = Field(30, gt=0)
    write_limit_s: float = Field(60, gt=0)
    destroy_limit_s: float = Field(30, gt=0)
    stop_limit_s: float = Field(60, gt=0)

    @field_validator("trusted_proxies", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        return tuple(value.replace(",", " ").split()) if isinstance(value, str) else value

    @property
    def own_url(self) -> str:
        """Where browsers reach this controller, as they write it themselves."""
        url = (self.public_url or f"http://localhost:{self.port}").lower()
        return url.removesuffix(":443" if url.startswith("https:") else ":80")

    def check(self) -> Self:
        """Refuse combinations that each variable alone does not show."""
        if (self.oidc_issuer is None) != (self.oidc_client_id is None):
            raise BadSettings(
                "POLYDEV_OIDC_ISSUER and POLYDEV_OIDC_CLIENT_ID need each other",
                hint="Set both, or neither",
            )
        if self.supabase_jwt_secret is not None and self.supabase_url is None:
            raise BadSettings(
                "SUPABASE_JWT_SECRET needs SUPABASE_URL",
                hint="Tokens name the project that made them, and are refused if it is another",
            )
        secret = self.supabase_jwt_secret
        if secret is not None and len(secret.get_secret_value()) < _MIN_JWT_SECRET:
            raise BadSettings(
                f"SUPABASE_JWT_SECRET has fewer than {_MIN_JWT_SECRET} characters",
                hint="Copy it whole from the project's settings",
            )
        for variable, url in (
            ("POLYDEV_OIDC_ISSUER", self.oidc_issuer),
            ("SUPABASE_URL", self.supabase_url),
        ):
            if url is not None and not _trustworthy(url):
                raise BadSettings(
                    f"{variable} must begin with https://",
                    hint="Only a loopback address may be asked without it",
                )
        return self

    @field_validator("hosts", mode="before")
    @classmethod
    def _split_hosts(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        words = value.replace(",", " ").split()
        pairs = [tuple(word.split("=", 1)) for word in words]
        named = {pair[0] for pair in pairs if re.fullmatch(_HOST_NAME, pair[0])}
        if any(len(pair) != 2 or not pair[1].startswith("/") for pair in pairs):
            raise ValueError("write `name=/path/of/hostd.sock`")
        if len(named) != len(pairs):
            raise ValueError("names are different, of small letters, digits and dashes")
        return tuple(pairs)

    @property
    def vm_hosts(self) -> tuple[tuple[HostId, Path], ...]:
        """The hosts, by name, and where each host agent listens."""
        return self.hosts or ((LOCAL_HOST, self.host_socket),)

    @property
    def controller_dir(self) -> Path:
        """What the controller owns on disk: database, journal, administrator's token."""
        return self.state_dir / "controller"

    def required_encryption_key(self) -> SecretStr:
        """`ENCRYPTION_KEY`, or one clear line when it is not set."""
        given = self.encryption_key
        if self.encryption_key_file is not None:
            given = SecretStr(_kept_text("ENCRYPTION_KEY_FILE", self.encryption_key_file))
        if given is None or not given.get_secret_value():
            raise BadSettings(
                "ENCRYPTION_KEY is not set",
                hint="Set it to a long random text and keep it safe, for example from "
                "`openssl rand -hex 32`; without it nothing that is stored can be opened",
            )
        return given

    def opening_keys(self) -> tuple[SecretStr, ...]:
        """The keys that open besides ENCRYPTION_KEY. Raises BadSettings."""
        lines = []
        if self.other_encryption_keys is not None:
            lines += self.other_encryption_keys.get_secret_value().splitlines()
        if self.other_encryption_keys_file is not None:
            path = self.other_encryption_keys_file
            lines += _kept_text("POLYDEV_OTHER_ENCRYPTION_KEYS_FILE", path).splitlines()
        return tuple(SecretStr(line) for line in lines if line.strip())


def _kept_text(variable: str, path: Path) -> str:
    """A small text that is kept in a file, without the newline at its end."""
    try:
        with path.open("rb") as file:
            return file.read(_KEY_FILE_BYTES).decode("utf-8").rstrip("\r\n")
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise BadSettings(f"{variable} is {path}, which cannot be read ({why})") from None


def _trustworthy(url: str) -> bool:
    """Whether what is fetched there comes from whom the URL names: over https, or locally."""
    parts = urlsplit(url)
    if parts.scheme == "https" or parts.hostname == "localhost":
        return True
    try:
        return ip_address(parts.hostname or "").is_loopback
    except ValueError:
        return False


S = TypeVar("S", bound=CommonSettings)


def read(kind: type[S]) -> S:
    """Read settings from the environment. Raises BadSettings that names the first bad variable."""
    try:
        settings = kind()
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise settings_words.in_words(kind.model_fields, first) from None
    except SettingsError as error:
        name = re.search(r'field "(\w+)"', str(error))
        raise settings_words.not_json(kind.model_fields, name[1] if name else "") from None
    return settings.check()
