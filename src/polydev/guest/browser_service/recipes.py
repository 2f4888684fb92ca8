"""Provider data for a login, from `<provider>.toml`.

The controller reads the same files; their comments explain the keys.
"""

import re
import tomllib
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

_PROVIDER_ID = re.compile(r"[a-z][a-z0-9_]{0,31}")


class UnknownProvider(Exception):
    """The provider does not exist, or its data is invalid."""


class LoginKind(StrEnum):
    """Mechanism of a CLI's login."""

    TERMINAL = "terminal"
    """Login command in a terminal."""
    ACP = "acp"
    """`authenticate` request of the Agent Client Protocol."""


@dataclass(frozen=True)
class LoginRecipe:
    """Login command, URL rules and credentials of one CLI."""

    provider: str
    kind: LoginKind
    method: str
    """Authentication method of an agent; empty for a terminal."""
    argv: tuple[str, ...]
    environment: dict[str, str]
    folders: tuple[str, ...]
    url_hosts: frozenset[str]
    callback_path: str
    callback_ports: frozenset[int]
    paste_accepts: str
    paste_code_pattern: str
    paste_url_redirect: str
    paste_ready_text: str
    paste_ready_within_s: float
    credentials_path: str
    credentials_bytes: int
    credentials_required: tuple[str, ...]


def load_recipe(folder: Path, provider: str) -> LoginRecipe:
    if _PROVIDER_ID.fullmatch(provider) is None:
        raise UnknownProvider("a provider's id is lower-case letters, digits and underscores")
    path = folder / f"{provider}.toml"
    try:
        data = tomllib.loads(path.read_text("utf-8"))
        return _recipe(data)
    except FileNotFoundError:
        raise UnknownProvider(f"{provider} is not a provider of this machine") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UnknownProvider(f"{path} cannot be used: {error!r}") from None


def _recipe(data: dict[str, Any]) -> LoginRecipe:
    login, paste, credentials = data["login"], data["paste"], data["credentials"]
    return LoginRecipe(
        provider=data["id"],
        kind=LoginKind(login["kind"]),
        method=login.get("method", ""),
        argv=tuple(login["argv"]),
        environment={**data.get("environment", {}), **login.get("environment", {})},
        folders=tuple(login.get("folders", ())),
        url_hosts=frozenset(login["url_hosts"]),
        callback_path=login["callback_path"],
        callback_ports=frozenset(login["callback_ports"]),
        paste_accepts=paste["accepts"],
        paste_code_pattern=paste["code_pattern"],
        paste_url_redirect=paste["url_redirect"],
        paste_ready_text=paste["ready_text"],
        paste_ready_within_s=float(paste["ready_within_s"]),
        credentials_path=credentials["path"],
        credentials_bytes=int(credentials["max_bytes"]),
        credentials_required=tuple(credentials["required"]),
    )
