"""Close connections on which no request begins.

uvicorn itself waits for a request without limit, so a client that only connects could use up all
file descriptors.
"""

from __future__ import annotations

import asyncio

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

REQUEST_TIMEOUT_S = 15.0
"""Time that a connection may stay open without a complete request header."""


class IdleTimeoutProtocol(H11Protocol):
    """uvicorn's HTTP protocol with a timeout for idle connections."""

    _patience: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        self._wait_no_longer()
        super().connection_lost(exc)

    def on_response_complete(self) -> None:
        self._wait()
        super().on_response_complete()

    def handle_websocket_upgrade(self, event: h11.Request) -> None:
        self._wait_no_longer()
        super().handle_websocket_upgrade(event)

    def _wait(self) -> None:
        self._wait_no_longer()
        self._patience = self.loop.call_later(REQUEST_TIMEOUT_S, self._give_up)

    def _wait_no_longer(self) -> None:
        if self._patience is not None:
            self._patience.cancel()
            self._patience = None

    def _give_up(self) -> None:
        if self.cycle is None or self.cycle.response_complete:
            self.transport.close()
