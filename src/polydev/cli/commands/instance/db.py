"""`polydev db`: database migrations.

The controller migrates the database when it starts; `db migrate` does the same beforehand. The
controller's user owns a SQLite file, so the migration of one runs as that user.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from pathlib import Path
from typing import Any

from pydantic import Field

import polydev
from polydev.cli import options
from polydev.cli.options import JsonFlag, runs
from polydev.cli.output.printer import Terminal
from polydev.cli.supervisor import preflight, system_user
from polydev.cli.supervisor.pidfile import Instance
from polydev.shared.errors import Failed, by_code
from polydev.shared.settings.base import CommonSettings, read

app = options.app("Manage the database.")

_PASSED = ("PATH", "LANG", "LC_", "TZ", "DATABASE_URL", "POLYDEV_STATE_DIR", "PG", "HOME")


class DatabaseSettings(CommonSettings):
    """The database, and the system user that owns its file."""

    database_url: str | None = Field(None, validation_alias="DATABASE_URL")
    """As for the controller."""
    user: str = "polydev"
    """The system user that owns the SQLite file."""

    @property
    def is_file(self) -> bool:
        return self.database_url is None or self.database_url.startswith("sqlite")


@app.callback()
def _group() -> None:
    """Keep `migrate` a subcommand although it is the only one."""


@app.command()
@runs
async def migrate(as_json: JsonFlag = False) -> None:
    """Migrate the database to the schema of this version. Does nothing if it is current.

    Examples: `polydev db migrate`,
    `DATABASE_URL=postgresql://polydev@db.example/polydev polydev db migrate`.
    """
    terminal = Terminal(as_json=as_json)
    settings = read(DatabaseSettings)
    async with terminal.step("Migrating the database") as step:
        done = await (_of_file(settings) if settings.is_file else _run((), _here()))
        step.detail = "already current" if done["was"] == done["is"] else f"now at {done['is']}"
    if as_json:
        terminal.answer(done)


async def _of_file(settings: DatabaseSettings) -> dict[str, Any]:
    """Migrate a SQLite file as the controller's user. Requires that no instance runs."""
    preflight.root()
    instance = Instance(settings.state_dir)
    if instance.pid() is not None:
        raise instance.already_running()
    owner = system_user.account(settings.user)
    system_user.prepare_folders(settings.state_dir, owner)
    with instance.held():
        program = await asyncio.to_thread(system_user.copy_program, settings.state_dir)
        return await _run(owner.setpriv(), program)


def _here() -> Path:
    return Path(polydev.__file__).parent.parent


async def _run(as_user: tuple[str, ...], program: Path) -> dict[str, Any]:
    """Run `polydev.controller.store` and return its answer. Raises its error."""
    env = {name: value for name, value in os.environ.items() if name.startswith(_PASSED)}
    process = await asyncio.create_subprocess_exec(
        *(*as_user, sys.executable, "-P", "-m", "polydev.controller.store"),
        env=env | {"PYTHONPATH": str(program)},
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    output, errors = await process.communicate()
    try:
        answer: dict[str, Any] = json.loads(output)
    except ValueError:
        last = errors.decode(errors="replace").strip().splitlines()[-1:]
        raise Failed(f"Cannot migrate the database: {''.join(last)}") from None
    if process.returncode != 0:
        raise by_code(answer["code"])(answer["message"], hint=answer["hint"])
    return answer
