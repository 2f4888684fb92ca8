"""Readiness notification to the parent: systemd, `polydev up --detach` or a test."""

from __future__ import annotations

import os
import socket


def notify_ready() -> None:
    """Send `READY=1` to NOTIFY_SOCKET, if it is set.

    Source: sd_notify(3). An address that begins with `@` is an abstract socket.
    """
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as notifier:
        notifier.connect("\0" + address[1:] if address.startswith("@") else address)
        notifier.send(b"READY=1")
