"""The Polydev of the journeys on real machines: one for all of them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from e2e.place import Place, a_demos_place


@pytest.fixture(scope="session")
def place() -> Iterator[Place]:
    """A Polydev of the tests' own, which nothing is left of afterwards.

    It boots its browser machines until somebody asks for a template to clone them of.
    """
    with a_demos_place(POLYDEV_WARM_START="true", POLYDEV_WARM_QUIET_S="3600") as place:
        yield place


@pytest.fixture(scope="session")
def report(place: Place) -> dict[str, Any]:
    """The last line of `polydev demo --json`, which has logged Claude Code in."""
    words = ("demo", "--provider", "claude_code", "--keep-approving", "--json")
    ended = place.run(*words, limit_s=1500)
    last = ended.stdout.splitlines()[-1] if ended.stdout else ""
    assert ended.returncode == 0, f"{ended.stderr[-8000:]}\n{last}"
    answer: dict[str, Any] = json.loads(last)
    return answer
