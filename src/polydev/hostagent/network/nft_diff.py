"""Comparison of two nftables rulesets, as `nft -j list` prints them.

Handles, counters and the content of dynamic sets differ between two loads of the same rules and are
ignored. Source: libnftables-json(5).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

_IDENTITY = frozenset({"handle", "index", "table", "family"})


@dataclass(slots=True)
class Table:
    """Content of a table."""

    items: dict[str, str] = field(default_factory=dict)
    """Maps chains, sets and elements by name to their content."""
    has_hooks: bool = False
    """Packets pass through the table: a chain of it is a base chain."""


Tables = dict[tuple[str, str], Table]
"""Maps tables by family and name."""


def parse(listing: str) -> Tables:
    """Parse the output of `nft -j list`; an empty text has no tables."""
    tables: Tables = {}
    for entry in json.loads(listing)["nftables"] if listing else []:
        [(kind, value)] = entry.items()
        if kind != "metainfo":
            name = value["name"] if kind == "table" else value["table"]
            _add(tables.setdefault((value["family"], name), Table()), kind, value)
    return tables


def differences(expected: Tables, found: Tables) -> Iterator[str]:
    """Describe each difference between the expected tables and those found."""
    for key, table in expected.items():
        name = " ".join(key)
        if key not in found:
            yield f"table {name} is gone (another program flushed the rules)"
            continue
        wanted, actual = table.items, found[key].items
        for item in sorted(wanted.keys() | actual.keys()):
            if item not in actual:
                yield f"table {name}: {item} is missing"
            elif item not in wanted:
                yield f"table {name}: another program added {item}"
            elif wanted[item] != actual[item]:
                yield f"table {name}: {item} was changed"


def _add(table: Table, kind: str, value: dict[str, Any]) -> None:
    items = table.items
    match kind:
        case "chain":
            items[f"chain {value['name']}"] = _canonical(value)
            table.has_hooks = table.has_hooks or "hook" in value
        case "rule":
            chain = f"chain {value['chain']}"
            items[chain] = items.get(chain, "") + _canonical(value["expr"])
        case "set" | "map":
            items[f"set {value['name']}"] = _canonical(value | {"elem": None})
            if "dynamic" not in value.get("flags", ()):
                for element in value.get("elem", []):
                    items[f"{_element_text(element)} in set {value['name']}"] = ""


def _canonical(value: object) -> str:
    if isinstance(value, dict):
        value = {key: inner for key, inner in value.items() if key not in _IDENTITY}
    return json.dumps(_without_counters(value), sort_keys=True)


def _without_counters(value: object) -> object:
    if isinstance(value, dict):
        return {k: None if k == "counter" else _without_counters(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_without_counters(inner) for inner in value]
    return value


def _element_text(element: object) -> str:
    text = json.dumps(element, sort_keys=True)
    return text.translate(str.maketrans("", "", '{}[]"')).removeprefix("concat: ")
