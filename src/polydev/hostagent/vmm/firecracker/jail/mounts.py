"""Mounts in a private mount namespace, and lookup of the processes in one.

Nothing else sees these mounts, and they vanish with the last process in the namespace, however it
ended: there is nothing to clean up.
"""

from __future__ import annotations

import ctypes
import os
import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

_CLONE_NEWNS = 0x20000
_RDONLY, _NOSUID, _NODEV, _NOEXEC = 0x1, 0x2, 0x4, 0x8
_REMOUNT, _BIND, _REC, _SLAVE = 0x20, 0x1000, 0x4000, 0x80000
_MARK = "polydev:"

T = TypeVar("T")
_libc = ctypes.CDLL(None, use_errno=True)


def run_in_mount_namespace(call: Callable[[], T]) -> T:
    """Call `call` in a new mount namespace, which its child processes inherit.

    Blocking. Only the calling thread moves there; the agent's other threads stay.
    """

    def inside() -> T:
        _checked(_libc.unshare(_CLONE_NEWNS), "unshare")
        _mount(None, "/", None, _SLAVE | _REC)
        return call()

    with ThreadPoolExecutor(1, thread_name_prefix="jail") as own_thread:
        return own_thread.submit(inside).result()


def mount_tmpfs(where: Path, *, mark: Path, uid: int, size_bytes: int) -> None:
    """Mount a tmpfs owned by `uid`; `find_marked` finds it by `mark`, a folder.

    It allows devices and executables: the jailer puts both there. Swap is off if the kernel can do
    that (since 6.4).
    """
    options = f"mode=0700,uid={uid},gid={uid},size={size_bytes},nr_inodes=1024"
    try:
        _mount(f"{_MARK}{mark}", str(where), "tmpfs", _NOSUID, f"{options},noswap")
    except OSError:
        _mount(f"{_MARK}{mark}", str(where), "tmpfs", _NOSUID, options)


def bind_file(source: Path, where: Path, *, writable: bool) -> None:
    """Bind-mount a file at `where`, which is created."""
    where.touch(mode=0o400)
    _mount(str(source), str(where), None, _BIND)
    access = 0 if writable else _RDONLY
    _mount(None, str(where), None, _REMOUNT | _BIND | _NOSUID | _NODEV | _NOEXEC | access)


def find_marked() -> Iterator[tuple[int, Path]]:
    """Yield processes with a marked filesystem in their namespace, and its mark.

    The kernel keeps the mark: an unprivileged process can neither unmount nor rename it.
    """
    ours = Path("/proc/self/ns/mnt").stat().st_ino
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and (entry / "ns/mnt").stat().st_ino != ours:
                for mark in _marks((entry / "mounts").read_text("utf-8", "surrogateescape")):
                    yield int(entry.name), mark
        except OSError:
            continue


def _marks(mounts: str) -> Iterator[Path]:
    """Source: proc(5), `/proc/pid/mounts`; getmntent(3) for the escapes."""
    for line in mounts.splitlines():
        source, _, kind, *_ = line.split(" ")
        if kind == "tmpfs" and source.startswith(_MARK):
            plain = re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), source)
            yield Path(plain.removeprefix(_MARK))


def _mount(
    source: str | None, where: str, kind: str | None, flags: int, options: str | None = None
) -> None:
    arguments = (None if it is None else os.fsencode(it) for it in (source, where, kind))
    data = None if options is None else options.encode()
    _checked(_libc.mount(*arguments, ctypes.c_ulong(flags), data), f"mount {where}")


def _checked(result: int, what: str) -> None:
    if result != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{what}: {os.strerror(code)}")
