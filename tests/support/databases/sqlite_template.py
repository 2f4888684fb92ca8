"""Migrated SQLite databases, copied from a template that each test process creates once.

A copied journal already has its queue: DBOS polls for new queues only once a second, and each new
world would wait for that.
"""

from __future__ import annotations

import asyncio
import atexit
import shutil
import tempfile
from functools import cache
from pathlib import Path

import forks
from memory_folder import memory_folder

from polydev.controller.store.engine.database import migrate

_FILE, _JOURNAL = "polydev.db", "journal.db"


def put_database(file: Path) -> None:
    """Copy a migrated database to a file. Blocks."""
    _put(_database() / _FILE, file)


def put_journal(folder: Path) -> None:
    """Copy the journal of a freshly started controller into a folder. Blocks."""
    _put(_journal() / _JOURNAL, folder / _JOURNAL)


def _put(template: Path, file: Path) -> None:
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    shutil.copyfile(template, file)
    file.chmod(0o600)


@cache
def _database() -> Path:
    folder = _folder()
    asyncio.run(migrate(None, folder))
    return folder


@cache
def _journal() -> Path:
    folder = _folder()
    forks.run("journal", (f"sqlite:///{folder / _FILE}", str(folder)), folder / "log")
    return folder


def _folder() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="polydev-sqlite-", dir=memory_folder()))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder
