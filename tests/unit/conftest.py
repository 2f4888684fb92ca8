"""Fixtures of all tests in this folder."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import memory_folder
import pytest


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    with memory_folder.temporary_folder() as folder:
        yield folder
