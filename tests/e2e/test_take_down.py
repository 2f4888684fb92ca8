"""Test `polydev down`. The module's name sorts last, after all journeys."""

from __future__ import annotations

from typing import Any

import pytest

from e2e.place import Place

pytestmark = [pytest.mark.vm, pytest.mark.clis]


def test_down_leaves_nothing(place: Place, report: dict[str, Any]) -> None:
    assert report["ok"]
    place.ok("down", "--demo")
    assert place.leftovers() == {}
