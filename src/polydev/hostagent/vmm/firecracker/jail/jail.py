"""A VMM's jail: a tmpfs root with the machine's files, and access to its content.

The tmpfs exists only in the VMM's own mount namespace (`mounts.py`). Golden images, disk and config
drive are bind-mounted into it, from any filesystem and with their owner unchanged; sockets, and a
snapshot while it is transferred, exist only there. When the VMM has ended, however it ended, the
jail is gone; an empty mountpoint remains in the machine's folder.

The VMM owns the jail's root and may be compromised by its guest: the agent opens files there by
descriptor, follows no symlink, and checks type and owner of everything it finds.
"""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from polydev.hostagent.system.sandbox import expendable, tool
from polydev.hostagent.vmm import process
from polydev.hostagent.vmm.firecracker.binaries import Binaries
from polydev.hostagent.vmm.firecracker.ipc import FirecrackerEndpoints
from polydev.hostagent.vmm.firecracker.jail import jailer, mounts
from polydev.hostagent.vmm.firecracker.jail.jailer import JailConfig
from polydev.shared.errors import MissingImage, VmmFailed
from polydev.shared.hints import Hint

FOLDER = "jail"
"""The jail's mountpoint in a machine's folder."""
_MIB = 1024 * 1024
_SPACE_MIB = 64
"""Besides two snapshots of the guest's memory (the old one and the new one):

the program's copy, and the snapshots' state files.
"""


@dataclass(frozen=True, slots=True)
class JailFile:
    """A file of the host that the VMM sees as `/<name>`."""

    name: str
    path: Path
    what: str
    """Description for error messages."""
    writable: bool = False


@dataclass(frozen=True, slots=True)
class JailedProcess:
    """A process in its jail; `root` is a descriptor of the jail's root."""

    process: process.VmmProcess
    root: int


def start(
    folder: Path,
    config: JailConfig,
    files: Sequence[JailFile],
    binaries: Binaries,
    endpoints: FirecrackerEndpoints,
) -> JailedProcess:
    """Build the jail and start the jailer in it. Blocking.

    Raises: MissingImage, MissingTool, VmmFailed, OSError; only the mountpoint remains then.
    """
    for file in files:
        _require(file, config.uid)
    # A core dump would contain the guest's memory.
    prlimit = [tool("prlimit", "util-linux"), "--core=0:0", "--"]
    argv = [*expendable(), *prlimit, *jailer.arguments(config, binaries)]
    root = jailer.root_of(config, binaries)
    root.mkdir(mode=0o700, parents=True, exist_ok=True)

    def inside() -> JailedProcess:
        size_bytes = (2 * config.memory_mib + _SPACE_MIB) * _MIB
        mounts.mount_tmpfs(root, mark=folder.resolve(), uid=config.uid, size_bytes=size_bytes)
        for file in files:
            mounts.bind_file(file.path.resolve(), root / file.name, writable=file.writable)
        descriptor = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            started = process.start(argv, (), endpoints.errors, folder, output=endpoints.console)
        except BaseException:
            os.close(descriptor)
            raise
        return JailedProcess(started, descriptor)

    return mounts.run_in_mount_namespace(inside)


def attach(running: process.VmmProcess) -> JailedProcess:
    """Open the jail of a running VMM. Blocking. Raises: VmmFailed if it has ended."""
    try:
        root = os.open(f"/proc/{running.pid}/root", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise VmmFailed("The VMM has ended") from error
    if running.has_ended:  # the pid may be reused already
        os.close(root)
        raise VmmFailed("The VMM has ended")
    return JailedProcess(running, root)


def find_in_folder(folder: Path) -> Iterator[tuple[int, Path, bool]]:
    """Yield VMMs jailed in or below `folder`: pid, path, and whether it exists.

    Blocking.
    """
    for pid, where in mounts.find_marked():
        if where.is_relative_to(folder):
            yield pid, where, where.exists()


def remove_mountpoint(folder: Path) -> None:
    """Remove the mountpoint, which is empty in the agent's namespace. Blocking."""
    shutil.rmtree(folder / FOLDER, ignore_errors=True)


def open_socket(root: int, name: str, uid: int) -> int:
    """Return a descriptor of the VMM's socket: connect to `/proc/self/fd/<n>`.

    Raises: FileNotFoundError if there is none yet; VmmFailed for anything but the VMM's socket.
    """
    descriptor = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=root)
    state = os.fstat(descriptor)
    if stat.S_ISSOCK(state.st_mode) and state.st_uid == uid:
        return descriptor
    os.close(descriptor)
    raise VmmFailed(f"/{name} in the jail is not the VMM's socket")


def open_file(root: int, name: str) -> int:
    """Open a regular file that the VMM wrote, to read. Raises: OSError, VmmFailed."""
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    descriptor = os.open(name, flags, dir_fd=root)
    if stat.S_ISREG(os.fstat(descriptor).st_mode):
        return descriptor
    os.close(descriptor)
    raise VmmFailed(f"/{name} in the jail is not a regular file")


def create_file(root: int, name: str, uid: int) -> int:
    """Create a file that the VMM may read, to write. Raises: OSError."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open(name, flags, 0o400, dir_fd=root)
    os.fchown(descriptor, uid, uid)
    return descriptor


def remove_file(root: int, name: str) -> None:
    """Remove a file of the jail, if it exists."""
    try:
        os.unlink(name, dir_fd=root)
    except OSError:
        return


def _require(file: JailFile, uid: int) -> None:
    try:
        state = file.path.stat()
    except FileNotFoundError:
        raise MissingImage(
            f"The {file.what} {file.path} is missing", hint=Hint.LIST_IMAGES.text()
        ) from None
    if state.st_uid != uid and not state.st_mode & stat.S_IROTH:
        raise VmmFailed(
            f"The {file.what} {file.path} is not readable by the VMM's user, {uid}",
            hint=f"Run: chmod o+r {file.path}",
        )
