"""Reserved ports for servers that tests start."""

from __future__ import annotations

import os
import socket
import weakref


class ReservedPort:
    """A port of 127.0.0.1 that stays reserved for the life of this object.

    The reservation is a socket that is bound but does not listen, so a server with SO_REUSEADDR can
    still listen on the port, any number of times. See socket(7) and ip(7).
    """

    def __init__(self) -> None:
        with socket.socket() as bound:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            bound.bind(("127.0.0.1", 0))
            self.number: int = bound.getsockname()[1]
            weakref.finalize(self, os.close, bound.detach())
