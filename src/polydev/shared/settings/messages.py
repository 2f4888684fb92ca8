"""Errors for invalid settings: the variable, its value unless secret, and the allowed values."""

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

_RULES = {
    "netns": "at most 32 lower-case letters, digits and hyphens",
    "egress_proxy": "http://<IPv4 address>:<port>",
    "public_url": "an http or https URL without a path",
    "oidc_issuer": "an http or https URL",
    "supabase_url": "an http or https URL",
    "otlp_endpoint": "an http or https URL",
}
"""Rules of fields with a pattern, in words."""

_NOUNS = {
    IPv4Network: "an IPv4 network",
    IPv4Address: "an IPv4 address",
    bool: "`true` or `false`",
    int: "a whole number",
    float: "a number",
}


def bad_value(fields: dict[str, FieldInfo], found: ErrorDetails) -> BadSettings:
    """Create the error for a validation error of pydantic."""
    name, field = _field(fields, str(found["loc"][0]) if found["loc"] else "")
    variable = variable_of(name, field)
    if found["type"] == "value_error":  # a validator of Polydev, with its own message
        reason = str(found["ctx"]["error"])
    else:
        reason = f"it must be {_rule(name, field, found)}"
    return BadSettings(f"{variable}{_shown(name, field, found.get('input'))} is invalid: {reason}")


def not_json(fields: dict[str, FieldInfo], name: str) -> BadSettings:
    """Create the error for a variable that must be a JSON object."""
    return BadSettings(
        f"{variable_of(name, fields.get(name))} is invalid: it must be a JSON object"
    )


def variable_of(name: str, field: FieldInfo | None) -> str:
    """Environment variable of a field."""
    alias = field.validation_alias if field else None
    choices = getattr(alias, "choices", [alias] if alias else [])
    return str(choices[0]) if choices else f"POLYDEV_{name.upper()}"


def _field(fields: dict[str, FieldInfo], where: str) -> tuple[str, FieldInfo | None]:
    """Find a field by its name or its variable."""
    for name, field in fields.items():
        if where in (name, variable_of(name, field)):
            return name, field
    return where, None


def _shown(name: str, field: FieldInfo | None, value: object) -> str:
    """Format the value; empty if it may contain a secret."""
    is_secret = _MAY_BE_SECRET.search(name) or SecretStr in _types(field)
    if is_secret or not isinstance(value, str) or "@" in value:
        return ""
    shown = value if len(value) <= _SHOWN_CHARACTERS else f"{value[:_SHOWN_CHARACTERS]}..."
    return f" ({shown!r})"


def _rule(name: str, field: FieldInfo | None, found: ErrorDetails) -> str:
    if choice := _CHOICE.fullmatch(str(found.get("ctx", {}).get("pattern", ""))):
        return f"one of {choice[1].replace('|', ', ')}"
    if name in _RULES:
        return _RULES[name]
    types = _types(field)
    for kind in types:
        if isinstance(kind, type) and issubclass(kind, StrEnum):
            return f"one of {', '.join(kind)}"
    if found["type"] == "string_too_short":
        return f"at least {found['ctx']['min_length']} characters long"
    noun = next((noun for kind, noun in _NOUNS.items() if kind in types), "in another format")
    return noun + _bounds(field)


def _bounds(field: FieldInfo | None) -> str:
    limits = {
        sign: getattr(limit, sign)
        for limit in (field.metadata if field else ())
        for sign in ("ge", "gt", "le", "lt")
        if getattr(limit, sign, None) is not None
    }
    if "ge" in limits and "le" in limits:
        return f" from {limits['ge']} to {limits['le']}"
    message = {"ge": "of at least", "gt": "above", "le": "of at most", "lt": "below"}
    return "".join(f" {message[sign]} {limit}" for sign, limit in limits.items())


def _types(field: FieldInfo | None) -> tuple[Any, ...]:
    """Type of a field, with its type arguments."""
    found: list[Any] = []
    waiting = [field.annotation] if field else []
    while waiting:
        kind = waiting.pop()
        found.append(kind)
        waiting += get_args(kind)
    return tuple(found)
