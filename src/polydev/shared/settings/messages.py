"""What is wrong with a setting, in words: the variable, its value, what it must be, an example.

`settings.read` calls it with what pydantic found, whose own words are for programmers. It knows
fields by their types and bounds alone. A value that is secret, or may hold something secret, is
not repeated.
"""

from __future__ import annotations

import re
from enum import StrEnum
from ipaddress import IPv4Address, IPv4Network
from typing import Any, get_args

from pydantic import SecretStr
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from polydev.shared.errors import BadSettings

_MAY_BE_SECRET = re.compile("key|secret|token|password|headers|database", re.IGNORECASE)
_SHOWN_CHARACTERS = 60
_CHOICE = re.compile(r"\^\(([a-z|]+)\)\$")

_PATTERNS = {
    "netns": ("at most 32 lower-case letters, digits and hyphens", "polydev"),
    "egress_proxy": ("http://<IPv4 address>:<port>", "http://192.0.2.10:3128"),
    "public_url": ("an http or https address without a path", "https://polydev.example.org"),
    "oidc_issuer": ("an http or https address", "https://accounts.example.org"),
    "supabase_url": ("an http or https address", "https://project.example.org"),
    "otlp_endpoint": ("an http or https address", "http://127.0.0.1:4318/v1/traces"),
}
"""What a field of a pattern must be, and an example."""

_EXAMPLES: dict[object, str] = {
    IPv4Address: "192.168.100.1",
    IPv4Network: "192.168.100.0/24",
    bool: "true",
    int: "1",
    float: "60",
}


def bad_value(fields: dict[str, FieldInfo], found: ErrorDetails) -> BadSettings:
    """The error to raise for what pydantic found first."""
    where = str(found["loc"][0]) if found["loc"] else ""
    name, field = _field(fields, where)
    variable = variable_of(name, field)
    rule, example = _rule(name, field, found)
    why = f"it must be {rule}"
    if found["type"] == "value_error":  # one of our own checks, in our own words
        why = str(found["ctx"]["error"])
    message = f"{variable}{_shown(name, field, found.get('input'))} is not usable: {why}"
    hint = f"For example {variable}={example}" if example else "Set it right, or leave it unset"
    return BadSettings(message, hint=hint)


def not_json(fields: dict[str, FieldInfo], name: str) -> BadSettings:
    """The error for a variable that holds a JSON object, and is none."""
    variable = variable_of(name, fields.get(name))
    hint = f"For example {variable}='{{\"boot_s\": 1}}'"
    return BadSettings(f"{variable} is not usable: it must be a JSON object", hint=hint)


def variable_of(name: str, field: FieldInfo | None) -> str:
    """The environment variable that a field is read from."""
    alias = field.validation_alias if field else None
    choices = getattr(alias, "choices", [alias] if alias else [])
    return str(choices[0]) if choices else f"POLYDEV_{name.upper()}"


def _field(fields: dict[str, FieldInfo], where: str) -> tuple[str, FieldInfo | None]:
    """A field by its name, or by the variable that it is read from."""
    for name, field in fields.items():
        if where in (name, variable_of(name, field)):
            return name, field
    return where, None


def _shown(name: str, field: FieldInfo | None, value: object) -> str:
    """The value in brackets; nothing if it is secret, long, or may have a password in it."""
    is_secret = _MAY_BE_SECRET.search(name) or SecretStr in _types(field)
    if is_secret or not isinstance(value, str) or "@" in value:
        return ""
    shown = value if len(value) <= _SHOWN_CHARACTERS else f"{value[:_SHOWN_CHARACTERS]}..."
    return f" ({shown!r})"


def _rule(name: str, field: FieldInfo | None, found: ErrorDetails) -> tuple[str, str]:
    """What the field must be, and an example."""
    types = _types(field)
    default = _default(field)
    pattern = str(found.get("ctx", {}).get("pattern", ""))
    if choice := _CHOICE.fullmatch(pattern):
        return f"one of {choice[1].replace('|', ', ')}", default or choice[1].split("|")[0]
    if name in _PATTERNS:
        return _PATTERNS[name]
    for kind in types:
        if isinstance(kind, type) and issubclass(kind, StrEnum):
            return f"one of {', '.join(kind)}", default or str(next(iter(kind)))
    if found["type"] == "string_too_short":
        return f"at least {found['ctx']['min_length']} characters long", ""
    noun = _noun(types)
    example = default or next((_EXAMPLES[kind] for kind in types if kind in _EXAMPLES), "")
    return noun + _bounds(field), example


def _noun(types: tuple[object, ...]) -> str:
    nouns = {
        IPv4Network: "an IPv4 network",
        IPv4Address: "an IPv4 address",
        bool: "`true` or `false`",
        int: "a whole number",
        float: "a number",
    }
    return next((noun for kind, noun in nouns.items() if kind in types), "of another form")


def _bounds(field: FieldInfo | None) -> str:
    limits = {
        sign: getattr(limit, sign)
        for limit in (field.metadata if field else ())
        for sign in ("ge", "gt", "le", "lt")
        if getattr(limit, sign, None) is not None
    }
    if "ge" in limits and "le" in limits:
        return f" from {limits['ge']} to {limits['le']}"
    words = {"ge": "of at least", "gt": "above", "le": "of at most", "lt": "below"}
    return "".join(f" {words[sign]} {limit}" for sign, limit in limits.items())


def _default(field: FieldInfo | None) -> str:
    default = field.default if field is not None else None
    if isinstance(default, bool):
        return str(default).lower()
    if isinstance(default, (tuple, list)):
        return ",".join(map(str, default))
    return str(default) if isinstance(default, (int, float, str, IPv4Address, IPv4Network)) else ""


def _types(field: FieldInfo | None) -> tuple[Any, ...]:
    """A field's type with the types that it is made of."""
    found: list[Any] = []
    waiting = [field.annotation] if field else []
    while waiting:
        kind = waiting.pop()
        found.append(kind)
        waiting += get_args(kind)
    return tuple(found)
