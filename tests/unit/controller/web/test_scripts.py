"""The pages' scripts name only existing error codes."""

from __future__ import annotations

import re
from pathlib import Path

import polydev
from polydev.shared.errors import by_code

STATIC = Path(polydev.__file__).parent / "controller/web/static"
SETS = re.compile(r"_HELPS = new Set\(\[(.*?)\]\)", re.DOTALL)
COMPARISONS = re.compile(r'error\?\.code === ("[a-z-]+")')


def codes() -> set[str]:
    scripts = "\n".join(path.read_text() for path in STATIC.rglob("*.js"))
    found = "".join([*SETS.findall(scripts), *COMPARISONS.findall(scripts)])
    return set(re.findall(r'"([a-z-]+)"', found))


def test_error_codes_in_scripts_exist() -> None:
    assert {"machine-asleep", "machine-busy", "not-connected"} <= codes()
    assert {code for code in codes() if by_code(code).code != code} == set()
