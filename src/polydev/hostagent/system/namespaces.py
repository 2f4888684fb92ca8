"""Create, remove and enter network namespaces, and connect to a port in one.

A thread that entered a namespace stays in it. So blocking netlink calls, sysctls and `nft` run in a
thread of their own; the agent's other threads never change theirs.
"""

from __future__ import annotations

import asyncio
import ctypes
import errno
import os
import socket
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TypeVar

from polydev.hostagent.system.cancellation import shielded_or_undo
from polydev.shared.errors import ChannelLost, NetworkFailed

NETNS_DIR = Path("/run/netns")

_CLONE_NEWNET = 0x40000000
_MS_BIND, _MS_REC, _MS_SHARED = 0x1000, 0x4000, 0x100000
_MNT_DETACH = 2

T = TypeVar("T")
_libc = ctypes.CDLL(None, use_errno=True)


def path_of(name: str) -> Path:
    """Return the mount point of a namespace, as ip-netns(8) uses it."""
    return NETNS_DIR / name


def exists(name: str) -> bool:
    """Return True if the namespace exists; a crash may leave only an empty file."""
    path = path_of(name)
    try:
        return path.stat().st_dev != NETNS_DIR.stat().st_dev
    except FileNotFoundError:
        return False


def create(name: str) -> None:
    """Create a namespace that `ip netns` sees too. Idempotent. Blocks."""
    if exists(name):
        return
    _share_mounts()
    path_of(name).touch(mode=0o444)
    with ThreadPoolExecutor(1) as own_thread:
        own_thread.submit(_unshare_onto, path_of(name)).result()


def remove(name: str) -> None:
    """Unmount and unlink a namespace. Idempotent. Blocks."""
    path = path_of(name)
    try:
        _checked(_libc.umount2(os.fsencode(path), _MNT_DETACH), "umount", path)
    except OSError as error:
        if error.errno not in {errno.EINVAL, errno.ENOENT}:
            raise
    path.unlink(missing_ok=True)


def in_scratch(call: Callable[[], T]) -> T:
    """Run a call in an empty namespace that ends with it. Blocks."""

    def inside() -> T:
        _checked(_libc.unshare(_CLONE_NEWNET), "unshare", NETNS_DIR)
        return call()

    with ThreadPoolExecutor(1) as own_thread:
        return own_thread.submit(inside).result()


def enter(path: Path) -> None:
    """Move the calling thread permanently into the namespace at `path`."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        _checked(_libc.setns(fd, _CLONE_NEWNET), "setns", path)
    finally:
        os.close(fd)


class NamespaceThread:
    """One thread inside a namespace that runs blocking calls in sequence."""

    def __init__(self, name: str | None) -> None:
        """`name` None: the thread stays in the agent's namespace."""
        self._name = name
        self._inode: int | None = None
        self._executor = ThreadPoolExecutor(1, thread_name_prefix=f"netns-{name or 'own'}")

    async def run(self, call: Callable[..., T], *args: object) -> T:
        """Run a blocking call inside the namespace, and return its result."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._executor, partial(self._inside, call, *args))

    @property
    def is_current(self) -> bool:
        """False if the name now denotes another namespace than the thread's."""
        if self._name is None or self._inode is None:
            return True
        return exists(self._name) and path_of(self._name).stat().st_ino == self._inode

    def close(self) -> None:
        """End the thread after its last call. It keeps the namespace alive until then."""
        self._executor.shutdown(wait=False)

    def _inside(self, call: Callable[..., T], *args: object) -> T:
        if self._name is not None and self._inode is None:
            enter(path_of(self._name))
            self._inode = Path("/proc/thread-self/ns/net").stat().st_ino
        return call(*args)


async def dial(netns: str, host: str, port: int, *, timeout_s: float = 5) -> socket.socket:
    """Connect a non-blocking TCP socket inside the namespace `netns`.

    A short-lived thread creates it there: a socket belongs to the namespace of its creation.
    Raises: ChannelLost if nothing answers in time, NetworkFailed if the namespace is missing.
    """
    thread = NamespaceThread(netns)
    try:
        sock = await shielded_or_undo(thread.run(_new_socket), _close)
    except OSError as error:
        raise NetworkFailed(f"Network namespace {netns} cannot be entered: {error}") from error
    finally:
        thread.close()
    try:
        async with asyncio.timeout(timeout_s):
            await asyncio.get_running_loop().sock_connect(sock, (host, port))
    except (OSError, TimeoutError) as error:
        sock.close()
        raise ChannelLost(
            f"Nothing answers on {host}:{port} in namespace {netns}: {error or 'timed out'}"
        ) from error
    except BaseException:
        sock.close()
        raise
    return sock


def _new_socket() -> socket.socket:
    sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    sock.setblocking(False)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock


def _share_mounts() -> None:
    """Make /run/netns a shared mount, visible in other mount namespaces."""
    NETNS_DIR.mkdir(mode=0o755, exist_ok=True)
    where = os.fsencode(NETNS_DIR)
    if _libc.mount(b"", where, b"none", _MS_SHARED | _MS_REC, None) == 0:
        return
    _checked(_libc.mount(where, where, b"none", _MS_BIND | _MS_REC, None), "mount", NETNS_DIR)
    _checked(_libc.mount(b"", where, b"none", _MS_SHARED | _MS_REC, None), "mount", NETNS_DIR)


def _unshare_onto(path: Path) -> None:
    _checked(_libc.unshare(_CLONE_NEWNET), "unshare", path)
    source = b"/proc/thread-self/ns/net"
    _checked(_libc.mount(source, os.fsencode(path), b"none", _MS_BIND, None), "mount", path)


def _checked(result: int, call: str, path: Path) -> None:
    if result != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{call}: {os.strerror(code)}", str(path))


async def _close(sock: socket.socket) -> None:
    sock.close()
