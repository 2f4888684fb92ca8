"""Polydev instance of a state folder: its lock, its pid and how to stop it.

`up` holds the lock for as long as it runs. The lock, not the pid, shows that it runs, because a
lock cannot become stale. Only root may read the file: a process that can read it could lock it.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from polydev.shared.errors import AlreadyRunning, Failed


class Instance:
    """Polydev instance whose state is in `state_dir`."""

    def __init__(self, state_dir: Path) -> None:
        self.state_dir = state_dir
        self._lock = state_dir / "up.lock"

    @property
    def has_run_here(self) -> bool:
        """True if `up` has ever run here: only then there is a lock file."""
        return self._lock.exists()

    def claim(self) -> None:
        """Mark the folder as a state folder before anything is in it."""
        self.state_dir.mkdir(parents=True, exist_ok=True, mode=0o755)
        self._lock.touch(mode=0o600)

    def pid(self) -> int | None:
        """Pid of the running supervisor, or None."""
        try:
            with self._lock.open("rb") as lock:
                try:
                    fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
                except BlockingIOError:
                    message = lock.read(32).strip()
                    return int(message) if message.isdigit() else None
        except FileNotFoundError:
            pass
        return None

    @contextmanager
    def held(self) -> Iterator[None]:
        """Hold the lock of the folder. Raises AlreadyRunning."""
        descriptor = os.open(self._lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "r+b") as lock:
            os.fchmod(descriptor, 0o600)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise self.already_running() from None
            lock.truncate(0)
            lock.write(b"%d\n" % os.getpid())
            lock.flush()
            yield
            lock.truncate(0)

    def already_running(self) -> AlreadyRunning:
        return AlreadyRunning(
            f"Polydev already runs in {self.state_dir} (process {self.pid() or 'unknown'})",
            hint="Stop it with `polydev down`, or set POLYDEV_STATE_DIR to another folder",
        )

    async def end(self, limit_s: float) -> bool:
        """Stop the supervisor and wait for its exit. Machines keep running.

        Returns False if none was running. Raises Failed after `limit_s`.
        """
        pid = self.pid()
        if pid is None:
            return False
        try:
            process = os.pidfd_open(pid)
        except ProcessLookupError:
            return False
        try:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(process, signal.SIGTERM)
            await wait_for_exit(process, limit_s)
        except TimeoutError:
            raise Failed(
                f"Polydev in {self.state_dir} (process {pid}) did not stop in {limit_s:.0f} s",
                hint=f"See the logs in {self.state_dir / 'logs'}",
            ) from None
        finally:
            os.close(process)
        return True


async def wait_for_exit(process: int, limit_s: float) -> None:
    """Wait until the process of a pidfd has exited. Raises TimeoutError.

    Source: pidfd_open(2): a pidfd is readable when its process has exited.
    """
    ended = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_reader(process, ended.set)
    try:
        async with asyncio.timeout(limit_s):
            await ended.wait()
    finally:
        loop.remove_reader(process)
