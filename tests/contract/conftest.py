"""The order of the contracts' tests."""

from __future__ import annotations

import pytest

_LONG = ("test_openapi.py", "test_acp_agents.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files that take minutes first: last, they would have a processor idle."""
    items.sort(key=lambda item: item.path.name not in _LONG)
