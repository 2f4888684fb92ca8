"""Ensure one agent per state folder and namespace, and create its Unix socket.

The kernel holds the locks and releases them with the process. A socket that a killed agent left is
removed only if nothing listens there.
"""

from __future__ import annotations

import contextlib
import fcntl
import grp
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from polydev.shared.errors import AlreadyRunning, BadSettings
from polydev.shared.hints import Hint

_PATH_BYTES = 107
_BACKLOG = 128
_RUN = Path("/run")


@contextlib.contextmanager
def only_agent(state_dir: Path, netns: str) -> Iterator[None]:
    """Lock the state folder and the VM namespace: agents must not share them.

    Raises AlreadyRunning if another agent holds one of them.
    """
    state_dir.mkdir(mode=0o755, parents=True, exist_ok=True)
    folder_taken = AlreadyRunning(
        f"Another host agent already runs in {state_dir}",
        hint=Hint.SET_STATE_DIR.text(),
    )
    namespace_taken = AlreadyRunning(
        f"Another host agent already uses network namespace {netns}",
        hint=Hint.SET_NETNS.text(),
    )
    with (
        _locked(state_dir / "hostd.lock", folder_taken),
        _locked(_RUN / f"polydev-{netns}.lock", namespace_taken),
    ):
        yield


@contextlib.contextmanager
def listening(path: Path, group: str | None) -> Iterator[socket.socket]:
    """Listen at `path` for root and `group`; remove the socket at the end.

    Raises: AlreadyRunning if another program listens there, BadSettings for an unusable group or
    path.
    """
    if len(os.fsencode(path)) > _PATH_BYTES:
        raise BadSettings(f"POLYDEV_STATE_DIR is too long: {path} cannot be a socket's path")
    gid = _gid(group)
    path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    _remove_stale(path)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        before = os.umask(0o177)
        try:
            listener.bind(str(path))
        finally:
            os.umask(before)
        os.chown(path, 0, gid)
        path.chmod(0o660)
        listener.listen(_BACKLOG)
        listener.setblocking(False)
        yield listener
    finally:
        listener.close()
        path.unlink(missing_ok=True)


@contextlib.contextmanager
def _locked(path: Path, taken: AlreadyRunning) -> Iterator[None]:
    """Hold a lock file; remove it at the end, before the lock is released."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            raise taken from None
        if path.exists() and os.path.samestat(os.fstat(descriptor), path.stat()):
            break
        os.close(descriptor)  # its holder removed it between our open and our lock
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(descriptor)


def _gid(group: str | None) -> int:
    if group is None:
        return 0
    try:
        return grp.getgrnam(group).gr_gid
    except KeyError:
        raise BadSettings(f"POLYDEV_SOCKET_GROUP is {group}, which is not a group") from None


def _remove_stale(path: Path) -> None:
    if not path.exists():
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(str(path))
        except (ConnectionRefusedError, FileNotFoundError):
            path.unlink(missing_ok=True)
            return
    raise AlreadyRunning(f"Another program already listens at {path}", hint="Stop it first")
