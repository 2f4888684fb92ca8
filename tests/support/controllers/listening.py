"""A client of `GET /api/events` that reconnects like a browser."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import httpx


@dataclass
class Listener:
    """Receive events and remember the last id."""

    client: httpx.AsyncClient
    last_id: str | None = None
    received: list[tuple[int, str, dict[str, Any]]] = field(default_factory=list)

    async def listen(self, **parameters: str) -> AsyncIterator[tuple[str, dict[str, Any]]]:
        """Yield kind and data of the events after the last one."""
        headers = {} if self.last_id is None else {"last-event-id": self.last_id}
        path = "/api/events"
        async with self.client.stream(
            "GET", path, headers=headers, params=parameters, timeout=httpx.Timeout(20, read=60)
        ) as answer:
            assert answer.status_code == 200, await answer.aread()
            assert answer.headers["content-type"].startswith("text/event-stream")
            fields: dict[str, str] = {}
            async for line in answer.aiter_lines():
                if line:
                    name, _, value = line.partition(":")
                    fields[name] = value.strip()
                    continue
                self.last_id = fields.get("id", self.last_id)
                if "data" in fields:
                    kind, data = fields["event"], json.loads(fields["data"])
                    self.received.append((int(self.last_id or 0), kind, data))
                    yield kind, data
                fields = {}
