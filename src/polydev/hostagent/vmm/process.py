"""VMM processes: start them, recognise them later, wait for their exit.

A process outlives the agent. It is held by a pidfd, so that no signal or wait ever reaches another
process with a reused pid. This works for children and adopted processes alike.
"""

from __future__ import annotations

import asyncio
import json
import os
import select
import signal
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from polydev.shared.atomic_files import write_whole
from polydev.shared.errors import VmmFailed

IDENTITY_FILE = "vmm.json"
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_END_LIMIT_S = 60
_DELETED = " (deleted)"


@dataclass(frozen=True, slots=True)
class ProcessIdentity:
    """`vmm.json`: a machine's VMM process, distinguished from later ones by its start time."""

    pid: int
    start_ticks: int
    boot_id: str

    def write(self, folder: Path) -> None:
        write_whole(folder / IDENTITY_FILE, json.dumps(asdict(self)).encode(), durable=False)

    @staticmethod
    def read(folder: Path) -> ProcessIdentity | None:
        """Return None if the file is missing or invalid."""
        try:
            known = json.loads((folder / IDENTITY_FILE).read_bytes())
            return ProcessIdentity(
                int(known["pid"]), int(known["start_ticks"]), str(known["boot_id"])
            )
        except (OSError, ValueError, KeyError, TypeError):
            return None


class VmmProcess:
    """A process that runs or has just ended."""

    def __init__(self, pid: int, pidfd: int) -> None:
        self.pid = pid
        self._pidfd = pidfd
        self._end: asyncio.Future[int | None] | None = None

    @property
    def identity(self) -> ProcessIdentity:
        """Raises: FileNotFoundError if the process was reaped."""
        return ProcessIdentity(self.pid, _start_ticks(self.pid), _boot_id())

    @property
    def has_ended(self) -> bool:
        """True once the process has ended, reaped or not."""
        if self._pidfd < 0:
            return True
        poller = select.poll()
        poller.register(self._pidfd, select.POLLIN)
        return bool(poller.poll(0))

    async def ended(self) -> int | None:
        """Wait for the exit and reap a child; return its status (-n for signal n).

        None if it was not our child. Can be called any number of times.
        """
        if self._end is None:
            loop = asyncio.get_running_loop()
            self._end = loop.create_future()
            loop.add_reader(self._pidfd, self._on_exit)
        return await asyncio.shield(self._end)

    async def kill(self) -> None:
        """Kill the process and wait. Raises: VmmFailed if SIGKILL does not end it."""
        if self._pidfd >= 0:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
        try:
            async with asyncio.timeout(_END_LIMIT_S):
                await self.ended()
        except TimeoutError:
            raise VmmFailed(f"Process {self.pid} did not end after SIGKILL") from None

    def release(self) -> None:
        """Close the pidfd without touching the process. Idempotent."""
        if self._pidfd < 0:
            return
        if self._end is not None:
            asyncio.get_running_loop().remove_reader(self._pidfd)
            self._end.cancel()
        os.close(self._pidfd)
        self._pidfd = -1

    def _on_exit(self) -> None:
        asyncio.get_running_loop().remove_reader(self._pidfd)
        if self._end is not None and not self._end.done():
            self._end.set_result(_reap(self._pidfd))


def start(
    argv: Sequence[str],
    descriptors: Sequence[int],
    errors: int,
    folder: Path,
    output: int | None = None,
) -> VmmProcess:
    """Start a VMM in its own session, in `folder`. Blocking. Raises: OSError.

    `output` receives standard output, if it differs from the error output.
    """
    process = subprocess.Popen(
        argv,
        stdin=subprocess.DEVNULL,
        stdout=errors if output is None else output,
        stderr=errors,
        pass_fds=descriptors,
        cwd=folder,
        env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C"},
        start_new_session=True,
    )
    pidfd = os.pidfd_open(process.pid)
    process.returncode = 0  # keeps Popen from waiting: the pidfd reports the exit
    return VmmProcess(process.pid, pidfd)


def find_process(identity: ProcessIdentity, uid: int) -> VmmProcess | None:
    """Return the process with that identity if it still runs as user `uid`.

    The user id cannot be forged. The arguments can: they lie in the VMM's own memory, where a guest
    that has taken it over may have changed them.
    """
    if identity.boot_id != _boot_id():
        return None
    found = open_process(identity.pid)
    if found is not None and _matches(identity, uid):
        return found
    if found is not None:
        found.release()
    return None


def is_running(identity: ProcessIdentity) -> bool:
    """Return True if the process with that identity still runs."""
    try:
        return identity.boot_id == _boot_id() and _start_ticks(identity.pid) == identity.start_ticks
    except (OSError, ValueError, IndexError):
        return False


def open_process(pid: int) -> VmmProcess | None:
    """Open a process by pid, if it exists."""
    try:
        return VmmProcess(pid, os.pidfd_open(pid))
    except OSError:
        return None


def find_in_folder(folder: Path, program: str) -> Iterator[tuple[int, Path, bool]]:
    """Yield VMMs started in or below `folder`: pid, path, and whether it exists.

    The path comes from the kernel, not from the VMM's memory.
    """
    for entry in Path("/proc").iterdir():
        try:
            where = str((entry / "cwd").readlink()) if entry.name.isdigit() else ""
            path = Path(where.removesuffix(_DELETED))
            if where and path.is_relative_to(folder) and _runs(entry, program):
                yield int(entry.name), path, not where.endswith(_DELETED)
        except OSError:
            continue


def _runs(entry: Path, program: str) -> bool:
    """True also while the wrappers that confine the program have not exec'ed it yet."""
    arguments = (entry / "cmdline").read_bytes().split(b"\0")
    return any(os.path.basename(word) == program.encode() for word in arguments)  # noqa: PTH119


def _matches(identity: ProcessIdentity, uid: int) -> bool:
    try:
        status = Path(f"/proc/{identity.pid}/status").read_text("utf-8", "replace")
        users = status[status.index("\nUid:") :].split("\n")[1].split()[1:]
        is_user = users == [str(uid)] * 4
        return is_user and _start_ticks(identity.pid) == identity.start_ticks
    except (OSError, ValueError, IndexError):
        return False


def _start_ticks(pid: int) -> int:
    """Read field 22 of proc(5) `stat`; the name before it may hold anything."""
    stat = Path(f"/proc/{pid}/stat").read_bytes()
    return int(stat[stat.rindex(b")") + 2 :].split()[19])


def _boot_id() -> str:
    return _BOOT_ID.read_text("ascii").strip()


def _reap(pidfd: int) -> int | None:
    try:
        end = os.waitid(os.P_PIDFD, pidfd, os.WEXITED)
    except ChildProcessError:
        return None
    if end is None:
        return None
    return end.si_status if end.si_code == os.CLD_EXITED else -end.si_status
