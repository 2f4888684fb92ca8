"""PostgreSQL for tests: a cluster per test session, a fresh database per test.

PostgreSQL refuses to run as root, so root runs it as Debian's `postgres` user. Nothing outlasts the
tests: the folder is temporary, and the server is stopped by its process id.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

import forks
import psycopg
from memory_folder import memory_folder
from ports import ReservedPort
from psycopg import sql

from polydev.controller.store.engine.database import migrate

APP, APP_PASSWORD = "polydev_app", "the tests' own"
_SUPERUSER = "postgres"
_TEMPLATE, _STARTED = "migrated", "started"
_START_LIMIT_S = 120
_NOT_DURABLE = {"fsync": "off", "full_page_writes": "off"}
_OPTIONS = {
    "max_connections": "300",
    "shared_buffers": "32MB",
    "autovacuum": "off",
    "lc_messages": "C",
}


class Cluster:
    """A PostgreSQL server on a port of its own. Databases belong to `polydev_app`, who is not a
    superuser: row-level security does not hold for one."""

    def __init__(self, folder: Path, *, is_durable: bool = False) -> None:
        self.folder = folder
        self._settings = _OPTIONS if is_durable else _OPTIONS | _NOT_DURABLE
        self._port = ReservedPort()
        self._process: subprocess.Popen[bytes] | None = None
        self._numbers = itertools.count(1)
        self._has_started = False

    @property
    def port(self) -> int:
        return self._port.number

    def start(self) -> None:
        """Start the server; call it in the main thread, whose end ends the server."""
        options = [f"--{name}={value}" for name, value in self._settings.items()]
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [
                    *_as_unprivileged(),
                    *(str(_programs() / "postgres"), "-D", str(self.folder / "data")),
                    *("-h", "127.0.0.1", "-p", str(self.port), "-k", str(self.folder)),
                    *options,
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd="/",
            )
        self._wait_until_it_answers()

    def stop(self) -> None:
        """Stop the server immediately, with all connections."""
        if self._process is not None:
            self._process.send_signal(signal.SIGINT)
            self._process.wait(_START_LIMIT_S)
            self._process = None

    def prepare(self) -> None:
        """Create the login, and the template for the tests' databases."""
        self.administer(
            sql.SQL("CREATE ROLE {} LOGIN CREATEROLE PASSWORD {}").format(
                sql.Identifier(APP), sql.Literal(APP_PASSWORD)
            )
        )
        self.empty_database(_TEMPLATE)
        asyncio.run(migrate(self.url(_TEMPLATE), self.folder / "unused"))

    def empty_database(self, name: str | None = None, owner: str = APP) -> str:
        """Create a database without tables; return its URL."""
        name = name or f"empty_{next(self._numbers)}"
        self.administer(
            sql.SQL("CREATE DATABASE {} OWNER {}").format(
                sql.Identifier(name), sql.Identifier(owner)
            )
        )
        return self.url(name)

    def database(self, *, with_journal: bool = False) -> str:
        """Create a migrated database, optionally with a journal; return its URL."""
        if with_journal and not self._has_started:
            self._copy(_TEMPLATE, _STARTED)
            forks.run("journal", (self.url(_STARTED), str(self.folder)), self.folder / "journal")
            self._has_started = True
        return self._copy(_STARTED if with_journal else _TEMPLATE, f"test_{next(self._numbers)}")

    def drop(self, url: str) -> None:
        """Drop a database, even one with open connections."""
        name = url.rpartition("/")[2]
        self.administer(
            sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name))
        )

    def url(self, name: str, user: str = APP, password: str = APP_PASSWORD) -> str:
        return f"postgresql://{user}:{quote(password)}@127.0.0.1:{self.port}/{name}"

    def superuser(self, database: str = "postgres") -> psycopg.Connection[tuple[object, ...]]:
        """Return a superuser's connection in autocommit mode."""
        return psycopg.connect(
            host=str(self.folder),
            port=self.port,
            user=_SUPERUSER,
            dbname=database.rpartition("/")[2],
            autocommit=True,
        )

    def administer(self, statement: sql.Composed | str) -> None:
        """Run a statement as the superuser."""
        with self.superuser() as connection:
            connection.execute(statement)  # type: ignore[arg-type]

    def _copy(self, template: str, name: str) -> str:
        self.administer(
            sql.SQL("CREATE DATABASE {} OWNER {} TEMPLATE {} STRATEGY FILE_COPY").format(
                sql.Identifier(name), sql.Identifier(APP), sql.Identifier(template)
            )
        )
        return self.url(name)

    def _wait_until_it_answers(self) -> None:
        ready = [str(_programs() / "pg_isready"), "-q", "-t", "5", "-h", str(self.folder)]
        for _ in range(_START_LIMIT_S * 10):
            assert self._process is not None
            log = (self.folder / "log").read_text()
            assert self._process.poll() is None, f"PostgreSQL did not start:\n{log}"
            if subprocess.run([*ready, "-p", str(self.port)], check=False).returncode == 0:
                return
            time.sleep(0.1)  # it sends no signal when it is ready
        raise TimeoutError("PostgreSQL did not start in time")


@contextmanager
def running_cluster(*, is_durable: bool = False) -> Iterator[Cluster]:
    """Run a server with its template; by default it is not durable."""
    where = None if is_durable else memory_folder()
    folder = Path(tempfile.mkdtemp(prefix="polydev-pg-", dir=where))
    cluster = Cluster(folder, is_durable=is_durable)
    try:
        _make_data(folder)
        cluster.start()
        cluster.prepare()
        yield cluster
    finally:
        cluster.stop()
        shutil.rmtree(folder, ignore_errors=True)


def _make_data(folder: Path) -> None:
    if os.geteuid() == 0:
        user = pwd.getpwnam(_SUPERUSER)
        os.chown(folder, user.pw_uid, user.pw_gid)
        folder.chmod(0o755)
    done = subprocess.run(
        [
            *_as_unprivileged(),
            *(str(_programs() / "initdb"), "-D", str(folder / "data"), "-U", _SUPERUSER),
            *("-E", "UTF8", "--locale=C.UTF-8", "-N", "--no-instructions"),
            *("--auth-local=trust", "--auth-host=scram-sha-256"),
        ],
        cwd="/",
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"initdb failed:\n{done.stdout}{done.stderr}"


def _as_unprivileged() -> list[str]:
    """Return a prefix that drops root and ends the server with the tests."""
    ending = ["setpriv", "--pdeathsig=INT"]
    if os.geteuid() != 0:
        return ending
    user = pwd.getpwnam(_SUPERUSER)
    return [*ending, f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--clear-groups"]


def _programs() -> Path:
    """Return the folder of the newest installed server."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"))
    assert found, "PostgreSQL is not installed: scripts/setup --tests installs it"
    return found[-1].parent
