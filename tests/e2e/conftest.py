"""What the journeys on real machines have in common."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from e2e.place import Place, a_demos_place


@pytest.fixture(scope="module")
def place() -> Iterator[Place]:
    """A Polydev of the module's own, which nothing is left of afterwards."""
    with a_demos_place() as place:
        yield place
