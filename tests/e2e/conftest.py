"""Fixtures for journeys: one Polydev on real machines for all tests."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from e2e.installation import Installation, demo_installation


@pytest.fixture(scope="session")
def installation() -> Iterator[Installation]:
    """Run a separate Polydev; check that nothing is left of it.

    It boots browser machines until a test requests a template for clones.
    """
    with demo_installation(POLYDEV_WARM_START="true", POLYDEV_WARM_QUIET_S="3600") as installation:
        yield installation


@pytest.fixture(scope="session")
def report(installation: Installation) -> dict[str, Any]:
    """Run `polydev demo --json`, which logs Claude Code in; return its report."""
    argv = ("demo", "--provider", "claude_code", "--keep-approving", "--json")
    ended = installation.run(*argv, limit_s=1500)
    last = ended.stdout.splitlines()[-1] if ended.stdout else ""
    assert ended.returncode == 0, f"{ended.stderr[-8000:]}\n{last}"
    answer: dict[str, Any] = json.loads(last)
    return answer
