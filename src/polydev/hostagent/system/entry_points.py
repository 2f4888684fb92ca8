"""Find the entry points of this program.

A checkout, and the copy that `polydev host setup` installs, have the `pyproject.toml` that declares
them beside `src/`. Otherwise the installed distributions declare them.
"""

from __future__ import annotations

import tomllib
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path

DRIVERS = "polydev.drivers"
"""Group of the VMM drivers; see `vmm/driver_selection.py`."""

_PYPROJECT = Path(__file__).resolve().parents[4] / "pyproject.toml"


@cache
def find(group: str, pyproject: Path = _PYPROJECT) -> dict[str, EntryPoint]:
    """Return a group's entry points by name, in the order of their declaration."""
    declared = _declared(pyproject)
    if declared is None:
        return {entry.name: entry for entry in entry_points(group=group)}
    values: dict[str, str] = declared.get(group, {})
    return {name: EntryPoint(name, value, group) for name, value in values.items()}


def _declared(pyproject: Path) -> dict[str, dict[str, str]] | None:
    """Read the groups that a checkout declares; None if there is no checkout of Polydev."""
    if not pyproject.is_file():
        return None
    try:
        project = tomllib.loads(pyproject.read_text()).get("project", {})
    except (OSError, ValueError):
        return None
    if project.get("name") != "polydev":
        return None
    groups: dict[str, dict[str, str]] = project.get("entry-points", {})
    return groups
