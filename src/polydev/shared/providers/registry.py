"""Provider registry: one folder per provider beside this module.

A folder holds `provider.toml` (its comments explain the keys), `credentials.schema.json` and
`icon.svg`, and a status script where the CLI has no status command. The files are part of Polydev,
so a mistake in one is a programming error and shows when the registry is first read.
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from polydev.shared.domain import CredentialKind, GuestFile
from polydev.shared.errors import UnknownProvider

if TYPE_CHECKING:
    from jsonschema import Draft202012Validator

FOLDER = Path(__file__).parent


@dataclass(frozen=True, slots=True)
class Setting:
    """One entry in a JSON settings file that belongs to the user."""

    path: str
    pointer: str
    value: object


@dataclass(frozen=True, slots=True)
class CredentialsFile:
    """The file in which a CLI stores its login."""

    path: str
    mode: int
    max_bytes: int
    validator: Draft202012Validator
    required: tuple[str, ...]
    """JSON pointers to strings that must not be empty."""
    account: tuple[str, ...]
    """JSON pointers to the ids of the account."""
    ends: str | None
    """JSON pointer to the expiry of the login, in milliseconds since 1970."""
    logout_argv: tuple[str, ...]
    """Revokes the login at the provider. Needs the network and may fail. Empty if the CLI has no
    such command."""
    settings: tuple[Setting, ...]
    """Settings that make the CLI use its login."""


class KeyForm(StrEnum):
    """Format of the file that holds an API key."""

    TEXT = "text"
    """The key alone."""
    JSON = "json"
    """A member of a JSON object, in a file that Polydev owns."""
    DOTENV = "dotenv"
    """A variable, in a file that belongs to the user."""


@dataclass(frozen=True, slots=True)
class ApiKey:
    """API key of a provider: its format, and where the CLI reads it."""

    url: str
    """Page on which the provider issues keys."""
    example: str
    pattern: re.Pattern[str]
    path: str
    form: KeyForm
    name: str
    """Name of the JSON member or the variable."""
    beside: Mapping[str, object]
    """Other members of the JSON object."""
    settings: tuple[Setting, ...]
    """Settings that make the CLI use the key."""


@dataclass(frozen=True, slots=True)
class Chat:
    """Command for one chat turn: prompt on standard input, JSON lines on standard output."""

    argv: tuple[str, ...]
    output: str
    """Name of the parser in `output_parsers`."""


@dataclass(frozen=True, slots=True)
class Acp:
    """Command that speaks the Agent Client Protocol on its standard input and output."""

    argv: tuple[str, ...]
    environment: Mapping[str, str]
    """Added to the provider's environment."""
    mode: str
    """Session mode in which the agent asks the user for permissions."""


@dataclass(frozen=True, slots=True)
class Provider:
    """One CLI and its provider."""

    id: str
    name: str
    memory_mib: int
    environment: Mapping[str, str]
    url_hosts: frozenset[str]
    accepts: str
    """`code` or `callback_url`: what the user may paste from a browser of their own."""
    credentials: CredentialsFile
    api_key: ApiKey
    files: tuple[GuestFile, ...]
    status_argv: tuple[str, ...]
    status_within_s: float
    """Time limit of the status command, also on a slow machine."""
    chat: Chat
    acp: Acp
    icon: Path
    """SVG file with one symbol, `icon`."""

    def credential_path(self, kind: CredentialKind) -> str:
        """Path of a credential of that kind in a CLI machine."""
        return self.credentials.path if kind is CredentialKind.LOGIN else self.api_key.path


def provider_ids() -> tuple[str, ...]:
    """Ids of all providers, sorted. Reads no file, so commands may call it at import."""
    return tuple(sorted(path.parent.name for path in FOLDER.glob("*/provider.toml")))


def provider(provider_id: str) -> Provider:
    """Find a provider by its id. Raises UnknownProvider, which names the known ids."""
    known = load_providers(FOLDER)
    try:
        return known[provider_id]
    except KeyError:
        raise UnknownProvider(
            f"There is no provider {_shortened(provider_id)}",
            hint=f"Providers: {', '.join(known)}",
        ) from None


def all_providers() -> tuple[Provider, ...]:
    """Every provider, sorted by id."""
    return tuple(load_providers(FOLDER).values())


@cache
def load_providers(folder: Path) -> Mapping[str, Provider]:
    """Read every provider in a folder, by id."""
    found = [_read(path) for path in sorted(folder.glob("*/provider.toml"))]
    return MappingProxyType({one.id: one for one in found})


def _shortened(text: str) -> str:
    return repr(text if len(text) <= 40 else text[:40] + "…")


def _read(path: Path) -> Provider:
    data = tomllib.loads(path.read_text("utf-8"))
    return Provider(
        id=data["id"],
        name=data["name"],
        memory_mib=data["memory_mib"],
        environment=MappingProxyType(dict(data.get("environment", {}))),
        url_hosts=frozenset(data["login"]["url_hosts"]),
        accepts=data["paste"]["accepts"],
        credentials=_credentials(data["credentials"], path.parent),
        api_key=_api_key(data["api_key"]),
        files=tuple(_file(entry) for entry in data.get("files", [])),
        status_argv=tuple(data["status"]["argv"]),
        status_within_s=float(data["status"]["within_s"]),
        chat=Chat(tuple(data["chat"]["argv"]), data["chat"]["output"]),
        acp=_acp(data["acp"]),
        icon=path.with_name("icon.svg"),
    )


def _credentials(data: dict[str, Any], folder: Path) -> CredentialsFile:
    from jsonschema import Draft202012Validator  # slow to import, and commands need no schema

    schema = json.loads((folder / "credentials.schema.json").read_text("utf-8"))
    Draft202012Validator.check_schema(schema)
    about = schema["x-polydev"]
    return CredentialsFile(
        path=data["path"],
        mode=data["mode"],
        max_bytes=data["max_bytes"],
        validator=Draft202012Validator(schema),
        required=tuple(data["required"]),
        account=tuple(about["account"]),
        ends=about["ends"],
        logout_argv=tuple(about["logout"]),
        settings=_settings(data),
    )


def _api_key(data: dict[str, Any]) -> ApiKey:
    return ApiKey(
        url=data["url"],
        example=data["example"],
        pattern=re.compile(data["pattern"], re.ASCII),
        path=data["path"],
        form=KeyForm(data["form"]),
        name=data.get("name", ""),
        beside=MappingProxyType(dict(data.get("beside", {}))),
        settings=_settings(data),
    )


def _settings(data: dict[str, Any]) -> tuple[Setting, ...]:
    entries = data.get("settings", [])
    return tuple(Setting(it["path"], it["pointer"], it["value"]) for it in entries)


def _acp(data: dict[str, Any]) -> Acp:
    environment = MappingProxyType(dict(data.get("environment", {})))
    return Acp(argv=tuple(data["argv"]), environment=environment, mode=data["mode"])


def _file(entry: dict[str, Any]) -> GuestFile:
    return GuestFile(
        path=entry["path"],
        content=entry["content"].encode(),
        mode=entry["mode"],
        if_absent=True,
    )
