"""Test that no query reaches rows of other users, whatever its arguments.

All functions of all query modules are called, so a new one is covered automatically.
"""

from __future__ import annotations

import dataclasses
import enum
import importlib
import inspect
import pkgutil
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Set
from datetime import datetime, timedelta
from typing import Any, cast

import pytest
from owned_rows import ANN, AT, BEN, NO_RIGHT, Raw, rows_of_others
from sqlalchemy.exc import NoResultFound, SQLAlchemyError

import polydev.controller.store.queries
from polydev.controller.store.engine.database import Database
from polydev.controller.store.engine.keyset import PageSpec
from polydev.shared.domain import UserId
from polydev.shared.errors import Missing, PolydevError
from polydev.shared.host_protocol import Health

MODULES = [
    importlib.import_module(module.name)
    for module in pkgutil.walk_packages(
        polydev.controller.store.queries.__path__, "polydev.controller.store.queries."
    )
    if not module.ispkg
]
FUNCTIONS = {
    f"{module.__name__.rpartition('.')[2]}.{name}": function
    for module in MODULES
    for name, function in inspect.getmembers(module, inspect.iscoroutinefunction)
    if function.__module__ == module.__name__
    and not name.startswith("_")
    and next(iter(inspect.signature(function).parameters), None) == "connection"
}


_OTHERS: dict[Any, Any] = {
    int: 1,
    float: 1.0,
    bool: True,
    datetime: AT,
    timedelta: timedelta(days=1),
    PageSpec: PageSpec(100),
    Health: Health(version="1", driver="simulated", accelerator="none"),
    "action": "machine.stop",
}


def _argument_of_ann(kind: Any, name: str) -> Any:  # noqa: PLR0911
    """Return an argument that an attacker on Ann's rows would pass."""
    origin, parts = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return _argument_of_ann(next(part for part in parts if part is not types.NoneType), name)
    if kind is UserId or name in ("user_id", "owner"):
        return ANN
    if kind in _OTHERS or name in _OTHERS:
        return _OTHERS.get(kind) or _OTHERS[name]
    if isinstance(kind, typing.NewType):
        return f"ann-{kind.__name__.removesuffix('Id').lower()}_id"
    if origin is not None and issubclass(origin, Mapping):
        return {}
    if origin is tuple:
        return tuple(_argument_of_ann(part, name) for part in parts if part is not Ellipsis)
    if origin is not None and issubclass(origin, Iterable):
        one = [_argument_of_ann(parts[0], name)]
        return frozenset(one) if issubclass(origin, Set) else one
    if dataclasses.is_dataclass(kind):
        hints = typing.get_type_hints(kind)
        fields = [field.name for field in dataclasses.fields(kind)]
        return kind(**{field: _argument_of_ann(hints[field], field) for field in fields})
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        return next(iter(kind))
    assert kind in (str, Any), f"add an argument to _OTHERS for a {kind}"
    return f"ann-{name}"


def _arguments_of_ann(function: Callable[..., Any]) -> tuple[list[Any], dict[str, Any]]:
    hints = typing.get_type_hints(function)
    values: list[Any] = []
    named: dict[str, Any] = {}
    for name, parameter in list(inspect.signature(function).parameters.items())[1:]:
        if parameter.kind is parameter.VAR_POSITIONAL:
            continue  # further conditions: without them, more rows match
        if parameter.kind is parameter.VAR_KEYWORD:
            dated = "datetime" in str(hints[name])
            named |= {"expires_at": AT} if dated else {"status": "failed"}
        elif parameter.kind is parameter.KEYWORD_ONLY:
            named[name] = _argument_of_ann(hints[name], name)
        else:
            values.append(_argument_of_ann(hints[name], name))
    return values, named


def test_queries_are_found() -> None:
    assert {"machines.get", "sessions.update", "api_tokens.delete", "credentials.upsert"} <= set(
        FUNCTIONS
    )


@pytest.mark.parametrize("name", FUNCTIONS)
async def test_no_query_reaches_rows_of_other_users(
    filled: Database, others_rows: dict[str, list[str]], name: str
) -> None:
    values, named = _arguments_of_ann(FUNCTIONS[name])
    result: object = None
    refused: Exception | None = None
    async with filled.write(BEN) as connection:
        try:
            async with connection.begin_nested():
                result = await FUNCTIONS[name](connection, *values, **named)
        except (SQLAlchemyError, PolydevError) as error:
            refused = error
        raw = await connection.get_raw_connection()
        assert await rows_of_others(cast(Raw, raw.driver_connection)) == others_rows
        await connection.rollback()
    assert refused is None or _is_refused_or_not_found(refused), refused
    assert "ann" not in repr(result)


def _is_refused_or_not_found(error: Exception) -> bool:
    cause = getattr(error, "orig", None)
    nothing_there = isinstance(error, Missing | NoResultFound)
    return nothing_there or getattr(cause, "sqlstate", None) == NO_RIGHT
