"""SQLite databases that are migrated already: copies of one that each test process makes once.

PostgreSQL's are copies, too (`postgres.py`). A journal has its queue registered: DBOS looks for
new queues once a second only, which each fresh world would wait for.
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
    """Put a database with this version's tables there. Blocks."""
    _put(_database() / _FILE, file)


def put_journal(folder: Path) -> None:
    """Put the journal of a controller that has started and done nothing there. Blocks."""
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
