"""How a process tells whoever started it that it answers: systemd, `up --detach`, a test.

`app.py`, the host agent and the supervisor call it once, when they do. It knows none of them.
"""

from __future__ import annotations

import os
import socket


def notify_ready() -> None:
    """Say `READY=1` where NOTIFY_SOCKET says to; nothing where nobody asked.

    Source: sd_notify(3); an address that begins with `@` is an abstract one.
    """
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as notifier:
        notifier.connect("\0" + address[1:] if address.startswith("@") else address)
        notifier.send(b"READY=1")
