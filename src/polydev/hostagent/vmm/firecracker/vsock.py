"""Connections to a guest's vsock ports, for the private channel.

Firecracker listens on a Unix socket and receives the port number first. Source: docs/vsock.md of
Firecracker, "Host-Initiated Connections".
"""

from __future__ import annotations

import asyncio
import os
import socket

from polydev.hostagent.vmm.firecracker.jail import jail
from polydev.shared.errors import ChannelLost, VmmFailed

SOCKET = "vsock.sock"
"""In the jail's root."""
GUEST_CID = 3
_ANSWER_BYTES = 32
_LIMIT_S = 5


async def connect(root: int, uid: int, port: int) -> socket.socket:
    """Open a connected, non-blocking socket to a vsock port. Raises: ChannelLost."""
    try:
        at = jail.open_socket(root, SOCKET, uid)
    except (OSError, VmmFailed) as error:
        raise ChannelLost(f"The VMM has no vsock socket: {error}") from error
    connected = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connected.setblocking(False)
    try:
        async with asyncio.timeout(_LIMIT_S):
            await asyncio.get_running_loop().sock_connect(connected, f"/proc/self/fd/{at}")
            await _request(connected, port)
    except (OSError, TimeoutError) as error:
        connected.close()
        raise ChannelLost(f"No answer on vsock port {port}: {error or 'timed out'}") from error
    except BaseException:
        connected.close()
        raise
    finally:
        os.close(at)
    return connected


async def _request(connected: socket.socket, port: int) -> None:
    loop = asyncio.get_running_loop()
    await loop.sock_sendall(connected, f"CONNECT {port}\n".encode())
    answer = b""
    # One byte at a time: everything after the line comes from the guest.
    while not answer.endswith(b"\n"):
        byte = await loop.sock_recv(connected, 1)
        if not byte or len(answer) == _ANSWER_BYTES:
            raise ConnectionError("the VMM refused the connection")
        answer += byte
    if not answer.startswith(b"OK "):
        raise ConnectionError("the VMM refused the connection")
