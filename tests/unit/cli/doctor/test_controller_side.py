"""Test what `polydev doctor` reports of a controller that refuses its token."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from polydev.cli.client.api_client import ClientSettings
from polydev.cli.doctor import controller_side
from polydev.shared.errors import NotSignedIn
from polydev.shared.settings.base import read


@pytest.fixture(autouse=True)
def no_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("POLYDEV_TOKEN", "POLYDEV_ADMIN_TOKEN"):
        monkeypatch.delenv(name, raising=False)


@asynccontextmanager
async def refusing_controller() -> AsyncIterator[str]:
    """Server that refuses every request; yields its URL."""
    problem = {"code": NotSignedIn.code, "detail": "Invalid or expired token", "hint": "Sign in"}
    body = json.dumps(problem).encode()
    head = b"HTTP/1.1 401 Unauthorized\r\nConnection: close\r\nContent-Length: %d\r\n\r\n"

    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(head % len(body) + body)
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(refuse, "127.0.0.1", 0) as server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"


async def test_refused_token_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    async with refusing_controller() as url:
        monkeypatch.setenv("POLYDEV_URL", url)
        monkeypatch.setenv("POLYDEV_TOKEN", "expired")
        [finding] = await controller_side.check(read(ClientSettings))
    assert (finding.name, finding.ok) == ("controller", False)
    assert (finding.message, finding.hint) == ("Invalid or expired token", "Sign in")


async def test_unreadable_token_is_not_a_failure(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "controller" / "admin-token").mkdir(parents=True)
    async with refusing_controller() as url:
        monkeypatch.setenv("POLYDEV_URL", url)
        monkeypatch.setenv("POLYDEV_STATE_DIR", str(tmp_path))
        [finding] = await controller_side.check(read(ClientSettings))
    assert (finding.name, finding.ok) == ("controller", None)
    assert finding.message.startswith("Cannot read the administrator's token")
