"""Test `polydev down`. The module's name sorts last, after all journeys."""

from __future__ import annotations

from typing import Any

import pytest

from e2e.installation import Installation

pytestmark = [pytest.mark.vm, pytest.mark.clis]


def test_down_leaves_nothing(installation: Installation, report: dict[str, Any]) -> None:
    assert report["ok"]
    installation.ok("down", "--demo")
    assert installation.leftovers() == {}
