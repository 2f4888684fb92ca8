"""The providers that there are: the TOML files beside this module, as frozen dataclasses.

The keys are explained in the files. They are our own, so a mistake in one is a programming error
and shows when the first provider is asked for.
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
from typing import Any

from jsonschema import Draft202012Validator

from polydev.shared.domain import CredentialKind, GuestFile
from polydev.shared.errors import UnknownProvider

_FOLDER = Path(__file__).parent


@dataclass(frozen=True, slots=True)
class Setting:
    """An entry of a settings file of the person's: JSON, in which all else is theirs."""

    path: str
    pointer: str
    value: object


@dataclass(frozen=True, slots=True)
class CredentialsFile:
    """Where a CLI keeps its login, and what must be in it."""

    path: str
    mode: int
    max_bytes: int
    validator: Draft202012Validator
    required: tuple[str, ...]
    """JSON pointers to text that is not empty."""
    account: tuple[str, ...]
    """JSON pointers to what names the account, where it is told."""
    ends: str | None
    """JSON pointer to when the login itself ends, in milliseconds since 1970."""
    logout_argv: tuple[str, ...]
    """Has the CLI give the login back to its provider; it may need the network, and may fail.
    Empty where the CLI has no command for it."""
    settings: tuple[Setting, ...]
    """What tells the CLI to use its login."""


class KeyForm(StrEnum):
    """How an API key stands in its file."""

    TEXT = "text"
    """Alone."""
    JSON = "json"
    """As a member of an object, in a file of ours."""
    DOTENV = "dotenv"
    """As a variable, in a file of the person's."""


@dataclass(frozen=True, slots=True)
class ApiKey:
    """How a person connects with an API key, and where the CLI reads it."""

    url: str
    """Where the provider hands them out."""
    example: str
    pattern: re.Pattern[str]
    path: str
    form: KeyForm
    name: str
    """Of the member or the variable."""
    beside: Mapping[str, object]
    """The object's other members."""
    settings: tuple[Setting, ...]
    """What tells the CLI to use the key."""


@dataclass(frozen=True, slots=True)
class Chat:
    """How a CLI answers one turn: the prompt on its standard input, JSON lines on its output."""

    argv: tuple[str, ...]
    output: str
    """Which reader understands it: a name that `answers.py` knows."""


@dataclass(frozen=True, slots=True)
class Acp:
    """How a CLI is started to speak the Agent Client Protocol on its standard input and output."""

    argv: tuple[str, ...]
    environment: Mapping[str, str]
    """Besides the provider's own."""
    mode: str
    """The session mode in which the agent asks the person, and nobody else, for permissions."""


@dataclass(frozen=True, slots=True)
class Provider:
    """One CLI and its provider."""

    id: str
    name: str
    memory_mib: int
    environment: Mapping[str, str]
    url_hosts: frozenset[str]
    accepts: str
    """What a person may paste instead of logging in in the machine: `code` or `callback_url`."""
    credentials: CredentialsFile
    api_key: ApiKey
    files: tuple[GuestFile, ...]
    status_argv: tuple[str, ...]
    status_within_s: float
    """How long that may take in a slow machine."""
    chat: Chat
    acp: Acp

    def path_of(self, kind: CredentialKind) -> str:
        """Where a credential of that kind stands in a CLI machine."""
        return self.credentials.path if kind is CredentialKind.LOGIN else self.api_key.path


def provider(provider_id: str) -> Provider:
    """The provider of that id. Raises UnknownProvider, which names those there are."""
    known = _load()
    try:
        return known[provider_id]
    except KeyError:
        raise UnknownProvider(
            f"There is no provider {_shown(provider_id)}", hint=f"There are: {', '.join(known)}"
        ) from None


def all_providers() -> tuple[Provider, ...]:
    """Every provider, in the order of their ids."""
    return tuple(_load().values())


def _shown(text: str) -> str:
    return repr(text if len(text) <= 40 else text[:40] + "…")


@cache
def _load() -> Mapping[str, Provider]:
    found = [_read(path) for path in sorted(_FOLDER.glob("*.toml"))]
    return MappingProxyType({one.id: one for one in found})


def _read(path: Path) -> Provider:
    data = tomllib.loads(path.read_text("utf-8"))
    return Provider(
        id=data["id"],
        name=data["name"],
        memory_mib=data["memory_mib"],
        environment=MappingProxyType(dict(data.get("environment", {}))),
        url_hosts=frozenset(data["login"]["url_hosts"]),
        accepts=data["paste"]["accepts"],
        credentials=_credentials(data["credentials"]),
        api_key=_api_key(data["api_key"]),
        files=tuple(_file(entry) for entry in data.get("files", [])),
        status_argv=tuple(data["status"]["argv"]),
        status_within_s=float(data["status"]["within_s"]),
        chat=Chat(tuple(data["chat"]["argv"]), data["chat"]["output"]),
        acp=_acp(data["acp"]),
    )


def _credentials(data: dict[str, Any]) -> CredentialsFile:
    schema = json.loads((_FOLDER / data["schema"]).read_text("utf-8"))
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
