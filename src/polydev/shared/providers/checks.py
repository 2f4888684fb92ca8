"""Validate what a machine reports: credentials and the login URL.

No error repeats what was reported: it may be secret, and the machine may lie.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

from polydev.shared.errors import BadCredentials, BadOAuthUrl
from polydev.shared.providers.registry import Provider

MAX_URL_CHARACTERS = 4096
MAX_DEPTH = 16
MAX_STRING_CHARACTERS = 32 * 1024
MAX_VALUES = 4096

_PRINTABLE = re.compile(r"[!-~]+")


def check_credentials(provider: Provider, reported: bytes | object) -> bytes:
    """Validate credentials and return them as canonical JSON.

    `reported` is JSON text or a parsed JSON value.
    Raises: BadCredentials, which names the place of the fault but not its content.
    """
    limit = provider.credentials.max_bytes
    if isinstance(reported, bytes):
        if len(reported) > limit:
            raise _bad(provider, f"are larger than {limit} bytes")
        reported = _parsed(provider, reported)
    if not isinstance(reported, dict):
        raise _bad(provider, "are not a JSON object")
    _check_size(provider, reported)
    fault = next(provider.credentials.validator.iter_errors(reported), None)
    if fault is not None:
        raise _bad(provider, f"fail {fault.validator} at {_place(fault.absolute_schema_path)}")
    for pointer in provider.credentials.required:
        value = value_at(reported, pointer)
        if not isinstance(value, str) or not value:
            raise _bad(provider, f"have no value at {pointer}")
    try:
        canonical = json.dumps(reported, ensure_ascii=True, allow_nan=False).encode("ascii")
    except (ValueError, TypeError):
        raise _bad(provider, "hold a value that JSON cannot represent") from None
    if len(canonical) > limit:
        raise _bad(provider, f"are larger than {limit} bytes")
    return canonical


def check_oauth_url(provider: Provider, text: object) -> str:
    """Return the login URL if users may open it. Raises BadOAuthUrl, which does not repeat it."""
    if not isinstance(text, str) or not 0 < len(text) <= MAX_URL_CHARACTERS:
        raise _bad_url(provider, "it is missing or too long")
    if _PRINTABLE.fullmatch(text) is None or "\\" in text:
        raise _bad_url(provider, "it contains characters that a URL cannot have")
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError:
        raise _bad_url(provider, "it is not a URL") from None
    if parts.scheme != "https" or "@" in parts.netloc:
        raise _bad_url(provider, "it is not a plain https URL")
    if port not in (None, 443) or parts.hostname not in provider.url_hosts:
        raise _bad_url(provider, "its host is not one of the provider's")
    return text


def _parsed(provider: Provider, text: bytes) -> object:
    try:
        return json.loads(text.decode("utf-8"), parse_constant=_refuse)
    except (ValueError, RecursionError):
        raise _bad(provider, "are not JSON") from None


def _refuse(_name: str) -> object:
    raise ValueError("not a number")


def _check_size(provider: Provider, document: dict[str, Any]) -> None:
    for count, (depth, value) in enumerate(_values(document)):
        if depth > MAX_DEPTH or count > MAX_VALUES:
            raise _bad(provider, "are nested too deeply or hold too many values")
        if isinstance(value, str) and len(value) > MAX_STRING_CHARACTERS:
            raise _bad(provider, f"hold a string of more than {MAX_STRING_CHARACTERS} characters")
        if isinstance(value, float) and not math.isfinite(value):
            raise _bad(provider, "hold a value that JSON cannot represent")


def _values(document: object) -> Iterator[tuple[int, object]]:
    waiting: list[tuple[int, object]] = [(0, document)]
    while waiting:
        depth, value = waiting.pop()
        yield depth, value
        if isinstance(value, dict):
            waiting.extend((depth + 1, inner) for pair in value.items() for inner in pair)
        elif isinstance(value, list):
            waiting.extend((depth + 1, inner) for inner in value)


def value_at(document: object, pointer: str) -> object:
    """Value at a JSON pointer; None if there is none."""
    for name in pointer.removeprefix("/").split("/"):
        if not isinstance(document, dict) or name not in document:
            return None
        document = document[name]
    return document


def _place(path: Any) -> str:
    # The path in the schema: the path in the document could hold text that the machine chose.
    return "/".join(str(part) for part in path)


def _bad(provider: Provider, fault: str) -> BadCredentials:
    return BadCredentials(
        f"The credentials that the machine reported for {provider.name} {fault}",
        hint="Connect again. If it fails again, this CLI version may use another file format",
    )


def _bad_url(provider: Provider, fault: str) -> BadOAuthUrl:
    return BadOAuthUrl(
        f"The login URL that the machine reported for {provider.name} was rejected: {fault}",
        hint=f"Allowed hosts: {', '.join(sorted(provider.url_hosts))}",
    )
