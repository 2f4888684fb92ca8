"""Opens a machine's TAP, to pass it to a VMM.

A VMM may not open /dev/net/tun and has no capability; the agent opens the TAP in the VM namespace
and passes the descriptor.
"""

from __future__ import annotations

import fcntl
import os
import socket
import struct

from polydev.hostagent.system.cancellation import shielded_or_undo
from polydev.hostagent.system.namespaces import NamespaceThread
from polydev.shared.errors import NetworkFailed

_TUNSETIFF = 0x400454CA
_IFF_TAP, _IFF_NO_PI, _IFF_VNET_HDR = 0x0002, 0x1000, 0x4000


async def open_tap(netns: str, name: str) -> int:
    """Open the TAP `name` in namespace `netns`. Raises: NetworkFailed."""
    thread = NamespaceThread(netns)
    try:
        return await shielded_or_undo(thread.run(_open, name), _close)
    except OSError as error:
        raise NetworkFailed(
            f"TAP {name} in namespace {netns} cannot be opened: {error.strerror or error}"
        ) from error
    finally:
        thread.close()


def _open(name: str) -> int:
    socket.if_nametoindex(name)  # fails if there is no such device: opening it would create one
    descriptor = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        flags = _IFF_TAP | _IFF_NO_PI | _IFF_VNET_HDR
        fcntl.ioctl(descriptor, _TUNSETIFF, struct.pack("16sH22x", name.encode(), flags))
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


async def _close(descriptor: int) -> None:
    os.close(descriptor)
