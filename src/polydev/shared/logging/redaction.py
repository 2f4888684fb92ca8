"""Redaction of log records: by type first, then by pattern.

Only values of plain types (text, numbers, times, ids, Polydev's errors) are logged; of anything
else, only the name of its type. So secrets, bytes, models, headers and library errors, whose text
may quote them, are never logged by mistake, and neither are types that are added later. The
patterns are a second net, for a secret that is already plain text.
"""

from __future__ import annotations

import re
import traceback
import unicodedata
from collections.abc import Iterator
from datetime import date, datetime, time, timedelta
from enum import Enum
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from pathlib import PurePath
from types import NoneType
from uuid import UUID

from polydev.shared.errors import PolydevError

HIDDEN = "<redacted>"
MAX_TEXT_CHARACTERS = 8 * 1024

_PLAIN = (
    *(str, int, float, NoneType, Enum, UUID, PurePath),
    *(date, datetime, time, timedelta),
    *(IPv4Address, IPv4Network, IPv6Address, IPv6Network),
)
_MAX_DEPTH = 4
_MAX_ITEMS = 32
_MAX_FRAMES = 16
_MAX_ERRORS = 6

_SECRET_NAME = re.compile(
    r"(?i)authorization|cookie|csrf|secret|token|passw|api[_-]?key|private|credential|verifier"
)
_PATTERNS: tuple[tuple[re.Pattern[str], str], ...] = (
    (re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(-----END [A-Z ]*-----|\Z)", re.S), HIDDEN),
    (re.compile(r"(?i)\b(bearer|basic)\s+[\w.~+/=-]{6,}"), rf"\1 {HIDDEN}"),
    (re.compile(r"\beyJ[\w-]{8,}\.[\w-]{4,}(\.[\w-]*)?"), HIDDEN),
    (re.compile(r"\bpd[a-z]{1,3}_[\w-]{8,}"), HIDDEN),
    (re.compile(r"\b(sk|rt|xox[a-z])-[\w-]{8,}"), HIDDEN),
    (re.compile(r"\b(gh[a-z]_|github_pat_|AIza|ya29\.)[\w-]{8,}"), HIDDEN),
    (re.compile(r"(\w+://[^/\s:@]*):[^@/\s]+@"), rf"\1:{HIDDEN}@"),
    (re.compile(r"(https?://[^\s?#\"'<>]+[?#])[^\s\"'<>]+"), rf"\1{HIDDEN}"),
    (
        re.compile(
            r"(?i)\b([\w-]*(?:secret|token|password|api[_-]?key)[\"']?\s*[=:]\s*[\"']?)"
            r"(?!<)[^\s\"',;}]{8,}"
        ),
        rf"\1{HIDDEN}",
    ),
)


def plain(value: object, depth: int = 0) -> object:
    """Reduce a value to plain values; others become their type's name."""
    if isinstance(value, PolydevError):
        return value.line()
    if isinstance(value, _PLAIN):
        return value
    if isinstance(value, type):
        return value.__name__
    kind = type(value)
    if depth == _MAX_DEPTH or kind not in (dict, list, tuple, set, frozenset):
        return f"<{kind.__name__}>"
    if isinstance(value, dict):
        pairs = list(value.items())[:_MAX_ITEMS]
        return {_name(key): _under(key, it, depth + 1) for key, it in pairs}
    if isinstance(value, (list, tuple, set, frozenset)):
        items = [plain(it, depth + 1) for it in list(value)[:_MAX_ITEMS]]
        return tuple(items) if kind is tuple else items
    raise AssertionError("unreachable")


def without_secrets(text: str) -> str:
    """Remove what looks like a secret, and limit the length."""
    redacted = text[:MAX_TEXT_CHARACTERS]
    for pattern, instead in _PATTERNS:
        redacted = pattern.sub(instead, redacted)
    return redacted if len(text) <= MAX_TEXT_CHARACTERS else f"{redacted}…"


def one_line(text: str) -> str:
    """Escape control characters, so that text cannot forge lines or control a terminal."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else _escaped(char) for char in text)


def describe_error(error: BaseException) -> str:
    """Describe an error, its causes and their tracebacks.

    Only messages of Polydev's errors are included: other errors may quote secrets.
    """
    return without_secrets("\n".join(_lines(error, set())))


def _lines(error: BaseException, seen: set[int]) -> Iterator[str]:
    if id(error) in seen or len(seen) >= _MAX_ERRORS:
        return
    seen.add(id(error))
    message = f": {one_line(error.line())}" if isinstance(error, PolydevError) else ""
    yield f"{type(error).__module__}.{type(error).__qualname__}{message}"
    for frame in reversed(traceback.extract_tb(error.__traceback__)[-_MAX_FRAMES:]):
        yield f"  at {frame.filename}:{frame.lineno} {frame.name}"
    if isinstance(error, BaseExceptionGroup):
        for part in error.exceptions:
            yield from _lines(part, seen)
    before = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    if before is not None:
        yield from _lines(before, seen)


def _under(key: object, value: object, depth: int) -> object:
    if isinstance(value, str) and isinstance(key, str) and _SECRET_NAME.search(key):
        return HIDDEN
    return plain(value, depth)


def _name(key: object) -> str:
    return key if isinstance(key, str) else str(plain(key, _MAX_DEPTH))


def _escaped(char: str) -> str:
    if unicodedata.category(char) == "Zs":
        return " "
    return char.encode("unicode_escape").decode("ascii")
