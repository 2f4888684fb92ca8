"""Where credentials stand in a CLI machine, so that exactly one of them counts.

Delivery asks what to write and remove, given what it found. A login and an API key of one provider
have places of their own, or share one; putting one there takes the other away. Some places are
files of the person's (settings, a `.env`): in those only our own entries change. What is found is a
machine's word: bounded, and parsed carefully. Nothing here reads or writes anything itself.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from polydev.shared.domain import CredentialKind, GuestFile
from polydev.shared.errors import BadApiKey, SettingsUnreadable
from polydev.shared.providers.checks import at
from polydev.shared.providers.registry import ApiKey, KeyForm, Provider, Setting

MAX_KEY_CHARACTERS = 512
MAX_SHARED_BYTES = 256 * 1024
"""Of a file of the person's in which something of ours stands."""

Found = Mapping[str, bytes | None]
"""What the machine holds at each path; None, or no entry, where there is nothing."""


@dataclass(frozen=True, slots=True)
class Change:
    """What to write into a machine, and what to remove there."""

    files: tuple[GuestFile, ...]
    removed: tuple[str, ...]

    @property
    def paths(self) -> tuple[str, ...]:
        """All that it replaces or removes."""
        return (*(file.path for file in self.files if not file.if_absent), *self.removed)


def check_api_key(provider: Provider, text: str) -> bytes:
    """A person's key as it is sealed. Raises BadApiKey, which does not repeat it."""
    key = text.strip()
    if len(key) > MAX_KEY_CHARACTERS or provider.api_key.pattern.fullmatch(key) is None:
        raise BadApiKey(
            f"That is not an API key for {provider.name}",
            hint=f"It looks like {provider.api_key.example}, and is from {provider.api_key.url}",
        )
    return json.dumps({"apiKey": key}).encode()


def key_held(provider: Provider, content: bytes) -> bytes | None:
    """The key in what stands at its place, as it would be sealed; None if there is none."""
    about = provider.api_key
    if len(content) > MAX_SHARED_BYTES:
        return None
    match about.form:
        case KeyForm.TEXT:
            text: object = content.decode("ascii", "replace")
        case KeyForm.JSON:
            text = at(_parsed(content), f"/{about.name}")
        case KeyForm.DOTENV:
            lines = [it for it in content.splitlines() if _sets(about, it)]
            text = lines[-1].partition(b"=")[2].decode("ascii", "replace") if lines else None
    try:
        return check_api_key(provider, text) if isinstance(text, str) else None
    except BadApiKey:
        return None


def places(provider: Provider) -> tuple[str, ...]:
    """Every path that a login or a key of the provider changes."""
    return tuple(dict.fromkeys((*_own(provider), *shared(provider))))


def shared(provider: Provider) -> tuple[str, ...]:
    """Those of them that are the person's files."""
    settings = (*provider.credentials.settings, *provider.api_key.settings)
    key = [provider.api_key.path] if provider.api_key.form is KeyForm.DOTENV else []
    return tuple(dict.fromkeys([*key, *(it.path for it in settings)]))


def to_place(
    provider: Provider, kind: CredentialKind, plaintext: bytes, found: Found | None = None
) -> Change:
    """What makes this credential the one that counts; its own file comes last.

    Raises: SettingsUnreadable.
    """
    was = found or {}
    after = _without(provider, was, settings_of=_other(kind))
    where = provider.path_of(kind)
    if kind is CredentialKind.LOGIN:
        settings, own = provider.credentials.settings, plaintext
    else:
        settings, key = provider.api_key.settings, str(json.loads(plaintext)["apiKey"])
        own = _with_key(provider.api_key, key, after.get(where))
    for setting in settings:
        before = after.get(setting.path) or _initial(provider, setting.path)
        after[setting.path] = _with_setting(setting, before)
    after.pop(where, None)
    changed = {path: it for path, it in after.items() if it != was.get(path)}
    written = {path: it for path, it in changed.items() if it is not None}
    others = [it for it in provider.files if it.path not in (*written, where)]
    return Change(
        (*others, *(GuestFile(*it) for it in written.items()), GuestFile(where, own)),
        tuple(path for path, it in changed.items() if it is None),
    )


def to_remove(provider: Provider, found: Found) -> Change:
    """What rids a machine of the provider's credentials; `found` has the shared files at least."""
    after = _without(provider, found)
    after = {path: after.get(path) for path in shared(provider)}
    changed = {path: it for path, it in after.items() if it != found.get(path)}
    gone = [path for path, it in changed.items() if it is None]
    return Change(
        tuple(GuestFile(path, it) for path, it in changed.items() if it is not None),
        (*_own(provider), *gone),
    )


def _own(provider: Provider) -> tuple[str, ...]:
    """The paths of files that are ours alone."""
    is_shared = provider.api_key.form is KeyForm.DOTENV
    key = [] if is_shared else [provider.api_key.path]
    return tuple(dict.fromkeys([provider.credentials.path, *key]))


def _other(kind: CredentialKind) -> CredentialKind:
    is_login = kind is CredentialKind.LOGIN
    return CredentialKind.API_KEY if is_login else CredentialKind.LOGIN


def _without(
    provider: Provider, found: Found, settings_of: CredentialKind | None = None
) -> dict[str, bytes | None]:
    """What is left of it without our credentials: all of them, and the settings of one or both."""
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


# -- a key in its file ---------------------------------------------------------------------------


def _with_key(about: ApiKey, key: str, before: bytes | None) -> bytes:
    match about.form:
        case KeyForm.TEXT:
            return f"{key}\n".encode()
        case KeyForm.JSON:
            return json.dumps({**about.beside, about.name: key}).encode()
        case KeyForm.DOTENV:
            kept = before or b""
            if len(kept) > MAX_SHARED_BYTES:
                raise _unreadable(about.path)
            gap = b"" if not kept or kept.endswith(b"\n") else b"\n"
            return kept + gap + f"{about.name}={key}\n".encode()


def _without_line(about: ApiKey, before: bytes | None) -> bytes | None:
    """A `.env` without the key; None if nothing else is in it."""
    if before is None or len(before) > MAX_SHARED_BYTES:
        return before
    lines = before.splitlines(keepends=True)
    kept = b"".join(line for line in lines if not _sets(about, line))
    return kept if kept.strip() or kept == before else None


def _sets(about: ApiKey, line: bytes) -> bool:
    return re.match(rb"\s*(export\s+)?" + about.name.encode() + rb"\s*=", line) is not None


# -- the person's settings -----------------------------------------------------------------------


def _initial(provider: Provider, path: str) -> bytes:
    """What a settings file begins with."""
    return next((file.content for file in provider.files if file.path == path), b"{}")


def _with_setting(setting: Setting, before: bytes) -> bytes:
    document = _parsed(before)
    if not isinstance(document, dict):
        raise _unreadable(setting.path)
    if at(document, setting.pointer) == setting.value:
        return before
    *way, last = _names(setting)
    inner: Any = document
    for name in way:
        inner = inner.setdefault(name, {})
        if not isinstance(inner, dict):
            raise _unreadable(setting.path)
    inner[last] = setting.value
    return _written(document)


def _without_setting(setting: Setting, before: bytes | None) -> bytes | None:
    """The file without our entry, and without objects that are empty then; None if all is."""
    document = None if before is None else _parsed(before)
    if document is None or at(document, setting.pointer) != setting.value:
        return before
    names = _names(setting)
    for depth in range(len(names), 0, -1):
        *way, last = names[:depth]
        inner: Any = document
        for name in way:
            inner = inner[name]
        if depth == len(names) or inner[last] == {}:
            del inner[last]
    return _written(document) if document else None


def _names(setting: Setting) -> list[str]:
    return setting.pointer.removeprefix("/").split("/")


def _parsed(content: bytes) -> Any:
    """The JSON object, empty where nothing is written; None if it is none, or too large."""
    if len(content) > MAX_SHARED_BYTES:
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
        f"{path} in the CLI machine holds settings of yours that Polydev cannot read as JSON",
        hint="Put that file right, or remove it, and connect again",
    )
