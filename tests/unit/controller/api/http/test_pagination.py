"""Test pagination: cursors, limits and links."""

from __future__ import annotations

import base64
import json
from datetime import UTC, datetime, timedelta

import httpx
import pytest
from fastapi import FastAPI

from polydev.controller.api.http import problem_documents
from polydev.controller.api.http.pagination import PageParams
from polydev.controller.store.engine.keyset import PageSpec

_AT = datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)
_ROWS = [(_AT + timedelta(microseconds=it), f"id-{it}") for it in range(5)]

api = FastAPI()
problem_documents.install(api)


@api.get("/things")
async def list_things(paged: PageParams, colour: str = "") -> list[str]:
    span = paged.page_spec(datetime, str)
    return [name for _, name in paged.trim(_after(span), lambda row: row)]


def _after(span: PageSpec) -> list[tuple[datetime, str]]:
    rows = [row for row in _ROWS if span.after is None or row > span.after]
    return rows[: span.limit]


@pytest.fixture
def client() -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.ASGITransport(api), base_url="http://api")


async def test_links_lead_through_all_pages(client: httpx.AsyncClient) -> None:
    seen, path = [], "/things?limit=2&colour=gr%C3%BCn"
    while path:
        answer = await client.get(path)
        assert "colour=gr%C3%BCn" in path
        seen.append(answer.json())
        path = answer.links.get("next", {}).get("url", "")
    assert seen == [["id-0", "id-1"], ["id-2", "id-3"], ["id-4"]]


async def test_exactly_full_page_is_the_last(client: httpx.AsyncClient) -> None:
    answer = await client.get("/things?limit=5")
    assert len(answer.json()) == 5
    assert "link" not in answer.headers


@pytest.mark.parametrize("limit", ["0", "501", "-1", "1.5", "many", "9" * 5000])
async def test_invalid_limit_is_refused(client: httpx.AsyncClient, limit: str) -> None:
    answer = await client.get("/things", params={"limit": limit})
    assert answer.status_code == 422


def _encoded(value: object) -> str:
    return base64.urlsafe_b64encode(json.dumps(value).encode()).decode()


@pytest.mark.parametrize(
    "cursor",
    [
        "",
        "!",
        "=",
        "äöü",
        "\x00",
        _encoded(None),
        _encoded({}),
        _encoded("ab"),
        _encoded([]),
        _encoded(["2026-01-02T03:04:05+00:00"]),
        _encoded(["2026-01-02T03:04:05+00:00", "a", "b"]),
        _encoded(["2026-01-02T03:04:05", "no zone"]),
        _encoded(["0001-01-01T00:00:00+14:00", "before all time"]),
        _encoded(["2026-01-02T03:04:05+00:00", "a\x00b"]),
        _encoded(["2026-01-02T03:04:05+00:00", "\ud800"]),
        _encoded(["2026-01-02T03:04:05+00:00", 7]),
        _encoded([7, "a"]),
        base64.urlsafe_b64encode(b"[" * 300).decode(),
        base64.urlsafe_b64encode(b"\xff\xfe").decode(),
        "A" * 513,
    ],
)
async def test_invalid_cursor_is_refused(client: httpx.AsyncClient, cursor: str) -> None:
    answer = await client.get("/things", params={"cursor": cursor})
    assert answer.status_code == 422
    assert answer.json()["code"] == "bad-request"
