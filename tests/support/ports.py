"""Ports of servers that tests start."""

from __future__ import annotations

import os
import socket
import weakref


class KeptPort:
    """A port of 127.0.0.1 that nobody else is given for as long as this lives.

    A server that sets SO_REUSEADDR can listen there all the same, as often as it is started: what
    keeps the port is bound, and does not listen. Source: socket(7), ip(7).
    """

    def __init__(self) -> None:
        with socket.socket() as keeping:
            keeping.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            keeping.bind(("127.0.0.1", 0))
            self.number: int = keeping.getsockname()[1]
            weakref.finalize(self, os.close, keeping.detach())
