"""nftables' own listing, brought into a form in which two of them can be compared.

`inspection.py` compares what is loaded with what should be. Left out is what differs between two
loads of the same text: handles, counters, and what the kernel itself puts into dynamic sets.
Source: libnftables-json(5).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

_IDENTITY = frozenset({"handle", "index", "table", "family"})


@dataclass(slots=True)
class Table:
    """One table, by the names of what is in it."""

    chains: dict[str, str] = field(default_factory=dict)
    """Name -> type, hook, priority and policy."""
    rules: dict[str, list[str]] = field(default_factory=dict)
    """Name of the chain -> its rules, in their order."""
    sets: dict[str, str] = field(default_factory=dict)
    """Name -> type and flags: maps too."""
    elements: dict[str, set[str]] = field(default_factory=dict)

    @property
    def has_hooks(self) -> bool:
        """Whether any packet passes through it."""
        return any('"hook"' in chain for chain in self.chains.values())


Tables = dict[tuple[str, str], Table]
"""By family and name."""


def parsed(listing: str) -> Tables:
    """What `nft -j list` printed; nothing for an empty text."""
    tables: Tables = {}
    for entry in json.loads(listing)["nftables"] if listing else []:
        [(kind, what)] = entry.items()
        if kind == "metainfo":
            continue
        own = what["name"] if kind == "table" else what["table"]
        _add(tables.setdefault((what["family"], own), Table()), kind, what)
    return tables


def differences(expected: Tables, found: Tables) -> Iterator[str]:
    """What of the expected tables is not so, in words."""
    for name, table in expected.items():
        words = " ".join(name)
        if name not in found:
            yield f"table {words} is gone (another program flushed the rules)"
        else:
            yield from (f"table {words}: {it}" for it in _in_table(table, found[name]))


def _in_table(expected: Table, found: Table) -> Iterator[str]:
    for name in sorted(expected.chains.keys() | found.chains.keys()):
        if name not in found.chains:
            yield f"chain {name} is missing"
        elif name not in expected.chains:
            yield f"another program added chain {name}"
        elif expected.chains[name] != found.chains[name]:
            yield f"the hook or policy of chain {name} was changed"
        elif expected.rules.get(name) != found.rules.get(name):
            count, wanted = len(found.rules.get(name, [])), len(expected.rules.get(name, []))
            yield f"chain {name} was changed ({count} rules instead of {wanted})"
    for name in sorted(expected.sets.keys() | found.sets.keys()):
        if expected.sets.get(name) != found.sets.get(name):
            yield f"set {name} was changed"
            continue
        wanted_elements = expected.elements.get(name, set())
        there = found.elements.get(name, set())
        if missing := sorted(wanted_elements - there):
            yield f"{_shown(missing)} is missing in set {name}"
        if extra := sorted(there - wanted_elements):
            yield f"{_shown(extra)} is too much in set {name}"


def _add(table: Table, kind: str, what: dict[str, Any]) -> None:
    match kind:
        case "chain":
            table.chains[what["name"]] = _text(_without_identity(what))
            table.rules.setdefault(what["name"], [])
        case "rule":
            table.rules.setdefault(what["chain"], []).append(_text(what["expr"]))
        case "set" | "map":
            is_dynamic = "dynamic" in what.get("flags", ())
            elements = [] if is_dynamic else what.get("elem", [])
            table.sets[what["name"]] = _text(_without_identity(what) | {"elem": None})
            table.elements[what["name"]] = {_text(element) for element in elements}


def _without_identity(what: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in what.items() if key not in _IDENTITY}


def _text(value: object) -> str:
    return json.dumps(_still(value), sort_keys=True)


def _still(value: object) -> object:
    """Without what counts: packets and bytes."""
    if isinstance(value, dict):
        return {key: None if key == "counter" else _still(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_still(inner) for inner in value]
    return value


def _shown(elements: list[str]) -> str:
    words = elements[0].translate(str.maketrans("", "", '{}[]"')).removeprefix("concat: ")
    return words if len(elements) == 1 else f"{words} (and {len(elements) - 1} more)"
