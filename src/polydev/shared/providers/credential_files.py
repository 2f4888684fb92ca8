"""Plan the credential files of a CLI machine, with exactly one active credential.

A login and an API key of one provider have paths of their own, or share one; installing one
removes the other. Some paths are files of the user (settings, a `.env`): only Polydev's entries in
them change. What the machine holds is untrusted, so it is bounded and parsed with care. This
module only plans; `workflows.credentials.credential_delivery` reads and writes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from polydev.shared.domain import CredentialKind, GuestFile
from polydev.shared.errors import BadApiKey, SettingsUnreadable
from polydev.shared.providers.checks import value_at
from polydev.shared.providers.registry import ApiKey, KeyForm, Provider, Setting

MAX_KEY_CHARACTERS = 512
MAX_USER_FILE_BYTES = 256 * 1024
"""Limit for a file of the user that holds an entry of Polydev."""

Found = Mapping[str, bytes | None]
"""Content of the machine's files by path; None, or no entry, if there is no file."""


@dataclass(frozen=True, slots=True)
class Change:
    """Files to write into a machine, and paths to remove."""

    files: tuple[GuestFile, ...]
    removed: tuple[str, ...]

    @property
    def paths(self) -> tuple[str, ...]:
        """Every path that the change replaces or removes."""
        return (*(file.path for file in self.files if not file.if_absent), *self.removed)


def check_api_key(provider: Provider, text: str) -> bytes:
    """Validate a user's key; returns it as stored. Raises BadApiKey, which does not repeat it."""
    key = text.strip()
    if len(key) > MAX_KEY_CHARACTERS or provider.api_key.pattern.fullmatch(key) is None:
        raise BadApiKey(
            f"This is not an API key for {provider.name}",
            hint=f"A key looks like {provider.api_key.example}; get one at {provider.api_key.url}",
        )
    return json.dumps({"apiKey": key}).encode()


def read_api_key(provider: Provider, content: bytes) -> bytes | None:
    """Read the key from its file, as it would be stored; None if there is none."""
    key_spec = provider.api_key
    if len(content) > MAX_USER_FILE_BYTES:
        return None
    match key_spec.form:
        case KeyForm.TEXT:
            text: object = content.decode("ascii", "replace")
        case KeyForm.JSON:
            text = value_at(_parsed(content), f"/{key_spec.name}")
        case KeyForm.DOTENV:
            lines = [it for it in content.splitlines() if _sets(key_spec, it)]
            text = lines[-1].partition(b"=")[2].decode("ascii", "replace") if lines else None
    try:
        return check_api_key(provider, text) if isinstance(text, str) else None
    except BadApiKey:
        return None


def credential_paths(provider: Provider) -> tuple[str, ...]:
    """Every path that a login or an API key of the provider changes."""
    return tuple(dict.fromkeys((*_own(provider), *user_file_paths(provider))))


def user_file_paths(provider: Provider) -> tuple[str, ...]:
    """Paths among them that belong to the user."""
    settings = (*provider.credentials.settings, *provider.api_key.settings)
    key = [provider.api_key.path] if provider.api_key.form is KeyForm.DOTENV else []
    return tuple(dict.fromkeys([*key, *(it.path for it in settings)]))


def plan_install(
    provider: Provider, kind: CredentialKind, plaintext: bytes, found: Found | None = None
) -> Change:
    """Plan how to make this credential the active one; its own file comes last.

    Raises: SettingsUnreadable.
    """
    before = found or {}
    after = _without(provider, before, settings_of=_other(kind))
    where = provider.credential_path(kind)
    if kind is CredentialKind.LOGIN:
        settings, own = provider.credentials.settings, plaintext
    else:
        settings, key = provider.api_key.settings, str(json.loads(plaintext)["apiKey"])
        own = _with_key(provider.api_key, key, after.get(where))
    for setting in settings:
        content = after.get(setting.path) or _initial(provider, setting.path)
        after[setting.path] = _with_setting(setting, content)
    after.pop(where, None)
    changed = {path: it for path, it in after.items() if it != before.get(path)}
    written = {path: it for path, it in changed.items() if it is not None}
    others = [it for it in provider.files if it.path not in (*written, where)]
    return Change(
        (*others, *(GuestFile(*it) for it in written.items()), GuestFile(where, own)),
        tuple(path for path, it in changed.items() if it is None),
    )


def plan_removal(provider: Provider, found: Found) -> Change:
    """Plan how to remove all credentials of a provider; `found` must hold the user's files."""
    after = _without(provider, found)
    after = {path: after.get(path) for path in user_file_paths(provider)}
    changed = {path: it for path, it in after.items() if it != found.get(path)}
    gone = [path for path, it in changed.items() if it is None]
    return Change(
        tuple(GuestFile(path, it) for path, it in changed.items() if it is not None),
        (*_own(provider), *gone),
    )


def _own(provider: Provider) -> tuple[str, ...]:
    # Paths that only Polydev writes.
    is_shared = provider.api_key.form is KeyForm.DOTENV
    key = [] if is_shared else [provider.api_key.path]
    return tuple(dict.fromkeys([provider.credentials.path, *key]))


def _other(kind: CredentialKind) -> CredentialKind:
    is_login = kind is CredentialKind.LOGIN
    return CredentialKind.API_KEY if is_login else CredentialKind.LOGIN


def _without(
    provider: Provider, found: Found, settings_of: CredentialKind | None = None
) -> dict[str, bytes | None]:
    # Without Polydev's credentials, and without the settings of one kind or of both.
    after = {**found, **dict.fromkeys(_own(provider))}
    if provider.api_key.form is KeyForm.DOTENV:
        where = provider.api_key.path
        after[where] = _without_line(provider.api_key, after.get(where))
    kinds = {
        CredentialKind.LOGIN: provider.credentials.settings,
        CredentialKind.API_KEY: provider.api_key.settings,
    }
    for kind, settings in kinds.items():
        if settings_of in (None, kind):
            for setting in settings:
                after[setting.path] = _without_setting(setting, after.get(setting.path))
    return after


# -- the API key in its file ---------------------------------------------------------------------


def _with_key(key_spec: ApiKey, key: str, before: bytes | None) -> bytes:
    match key_spec.form:
        case KeyForm.TEXT:
            return f"{key}\n".encode()
        case KeyForm.JSON:
            return json.dumps({**key_spec.beside, key_spec.name: key}).encode()
        case KeyForm.DOTENV:
            existing = before or b""
            if len(existing) > MAX_USER_FILE_BYTES:
                raise _unreadable(key_spec.path)
            gap = b"" if not existing or existing.endswith(b"\n") else b"\n"
            return existing + gap + f"{key_spec.name}={key}\n".encode()


def _without_line(key_spec: ApiKey, before: bytes | None) -> bytes | None:
    """Remove the key from a `.env`; None if nothing else is in it."""
    if before is None or len(before) > MAX_USER_FILE_BYTES:
        return before
    lines = before.splitlines(keepends=True)
    existing = b"".join(line for line in lines if not _sets(key_spec, line))
    return existing if existing.strip() or existing == before else None


def _sets(key_spec: ApiKey, line: bytes) -> bool:
    return re.match(rb"\s*(export\s+)?" + key_spec.name.encode() + rb"\s*=", line) is not None


# -- the user's settings -------------------------------------------------------------------------


def _initial(provider: Provider, path: str) -> bytes:
    return next((file.content for file in provider.files if file.path == path), b"{}")


def _with_setting(setting: Setting, before: bytes) -> bytes:
    document = _parsed(before)
    if not isinstance(document, dict):
        raise _unreadable(setting.path)
    if value_at(document, setting.pointer) == setting.value:
        return before
    *parents, last = _names(setting)
    inner: Any = document
    for name in parents:
        inner = inner.setdefault(name, {})
        if not isinstance(inner, dict):
            raise _unreadable(setting.path)
    inner[last] = setting.value
    return _written(document)


def _without_setting(setting: Setting, before: bytes | None) -> bytes | None:
    """Remove Polydev's entry and objects that are then empty; None if the file is then empty."""
    document = None if before is None else _parsed(before)
    if document is None or value_at(document, setting.pointer) != setting.value:
        return before
    names = _names(setting)
    for depth in range(len(names), 0, -1):
        *parents, last = names[:depth]
        inner: Any = document
        for name in parents:
            inner = inner[name]
        if depth == len(names) or inner[last] == {}:
            del inner[last]
    return _written(document) if document else None


def _names(setting: Setting) -> list[str]:
    return setting.pointer.removeprefix("/").split("/")


def _parsed(content: bytes) -> Any:
    """Parse a JSON object; an empty file is an empty object. None if it is none or too large."""
    if len(content) > MAX_USER_FILE_BYTES:
        return None
    try:
        document = json.loads(content.decode("utf-8-sig").strip() or "{}", parse_constant=_refuse)
    except (ValueError, RecursionError):
        return None
    return document if isinstance(document, dict) else None


def _refuse(_name: str) -> object:
    raise ValueError("not a number")


def _written(document: object) -> bytes:
    text = json.dumps(document, indent=2, ensure_ascii=False)
    return f"{text}\n".encode(errors="replace")


def _unreadable(path: str) -> SettingsUnreadable:
    return SettingsUnreadable(
        f"Your settings file {path} in the CLI machine is not valid JSON",
        hint="Correct or remove that file, then connect again",
    )
