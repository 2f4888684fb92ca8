"""Fixtures for tests on real machines."""

from __future__ import annotations

import os

import pytest
from saved_machine import SavedMachine, saved_once


@pytest.fixture(scope="session")
def saved_machine(tmp_path_factory: pytest.TempPathFactory) -> SavedMachine:
    """Hibernated CLI machine, shared by all processes of the test run."""
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent
    return saved_once(folder / "saved-machine")
