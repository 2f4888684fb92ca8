"""Test problem documents, size limits and host names."""

from __future__ import annotations

from collections.abc import AsyncIterator

import httpx
import pytest
from fastapi import FastAPI
from pydantic import BaseModel, ConfigDict

from polydev.controller.api.http import problem_documents
from polydev.controller.api.http.middleware import MAX_BODY_BYTES, MAX_HEADERS, RequestGuard
from polydev.controller.api.http.openapi_responses import (
    problem_responses,
    public_problem_responses,
)
from polydev.shared.errors import (
    HostUnreachable,
    MachineBusy,
    NoSuchMachine,
    NotSignedIn,
    PolydevError,
    QuotaExceeded,
    TooManyRequests,
)

_RAISED: dict[str, PolydevError] = {
    "busy": MachineBusy("It is busy", hint="Wait"),
    "missing": NoSuchMachine("There is none"),
    "stranger": NotSignedIn("Who are you"),
    "quota": QuotaExceeded("Enough"),
    "often": TooManyRequests("Slowly", retry_after_s=42),
    "away": HostUnreachable("Away"),
}


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid")
    number: int
    text: str = ""


def _app(public_url: str | None = None) -> httpx.AsyncClient:
    api = FastAPI()
    problem_documents.install(api)

    @api.get("/raise/{which}")
    async def raise_it(which: str) -> None:
        if which in _RAISED:
            raise _RAISED[which]
        raise RuntimeError("a secret that no answer may contain")

    @api.post("/body")
    async def take(body: _Body) -> int:
        body.text.encode()  # as a database does
        return body.number

    guarded = RequestGuard(api, "127.0.0.1", public_url)
    transport = httpx.ASGITransport(guarded, raise_app_exceptions=False)
    return httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1")


async def _chunks() -> AsyncIterator[bytes]:
    for _ in range(3):
        yield b"x" * 50_000


@pytest.fixture
def client() -> httpx.AsyncClient:
    return _app()


@pytest.mark.parametrize(
    ("which", "status", "headers"),
    [
        ("busy", 409, {}),
        ("missing", 404, {}),
        ("stranger", 401, {"www-authenticate": "Bearer"}),
        ("quota", 403, {}),
        ("often", 429, {"retry-after": "42"}),
        ("away", 503, {"retry-after": "5"}),
    ],
)
async def test_error_class_decides_the_status(
    client: httpx.AsyncClient, which: str, status: int, headers: dict[str, str]
) -> None:
    answer = await client.get(f"/raise/{which}")
    error = _RAISED[which]
    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["code"] == error.code
    assert (answer.json()["detail"], answer.json()["hint"]) == (error.message, error.hint)
    assert headers.items() <= dict(answer.headers).items()


async def test_unexpected_errors_are_answered_without_their_text(
    client: httpx.AsyncClient, caplog: pytest.LogCaptureFixture
) -> None:
    answer = await client.get("/raise/other")
    assert (answer.status_code, answer.json()["code"]) == (500, "internal")
    assert "secret" not in answer.text
    [line] = [it.getMessage() for it in caplog.records if it.name == "polydev.controller.api"]
    assert "RuntimeError at test_problem_documents.py:" in line
    assert "secret" not in line


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"\xff\xfe",
        b'{"number": 1, "text": "\xff"}',
        b'{"number": 1, "text": "\\ud800"}',
        b'{"number": 1, "\\ud800": 2}',
        b'{"number": 1, "\\u0000": 2}',
        b'{"number": 1, "' + b"x" * 60_000 + b'": 2}',
        b'{"number": ' + b"9" * 10_000 + b"}",
        b'{"number": 1e999}',
        b'{"number": NaN}',
        b"[" * 60_000,
        b"null",
    ],
)
async def test_malformed_body_is_a_problem(client: httpx.AsyncClient, content: bytes) -> None:
    answer = await client.post(
        "/body", content=content, headers={"content-type": "application/json"}
    )
    assert (answer.status_code, answer.json()["code"]) == (422, "bad-request"), answer.text
    assert len(answer.content) < 2000


async def test_unknown_paths_and_methods_are_problems(client: httpx.AsyncClient) -> None:
    for method, path, status, code in (
        ("GET", "/nowhere", 404, "not-found"),
        ("GET", "/%00", 404, "not-found"),
        ("GET", "/%ff", 404, "not-found"),
        ("DELETE", "/body", 405, "method-not-allowed"),
    ):
        answer = await client.request(method, path)
        assert (answer.status_code, answer.json()["code"]) == (status, code)
        assert answer.headers["content-type"] == "application/problem+json"


async def test_oversized_requests_are_refused(client: httpx.AsyncClient) -> None:
    many = {f"x-{it}": "y" for it in range(MAX_HEADERS + 1)}
    for answer in (
        await client.post("/body", content=b"x" * (MAX_BODY_BYTES + 1)),
        await client.post("/body", content=_chunks()),
        await client.get("/nowhere", headers=many),
        await client.get("/" + "x" * 5000),
        await client.get("/nowhere", params={"q": "x" * 5000}),
        await client.get("/nowhere", headers={"content-length": "9" * 6000}),
    ):
        assert (answer.status_code, answer.json()["code"]) == (413, "too-large"), answer.text
    odd = await client.get("/nowhere", headers={"content-length": b"\xb2"})
    assert (odd.status_code, odd.json()["code"]) == (422, "bad-request")


@pytest.mark.parametrize(
    ("public_url", "host", "status"),
    [
        (None, "127.0.0.1", 404),
        (None, "127.0.0.1:4000", 404),
        (None, "localhost:4000", 404),
        (None, "polydev.example", 403),
        (None, "", 403),
        ("https://polydev.example", "polydev.example", 404),
        ("https://polydev.example", "Polydev.Example:443", 404),
        ("https://polydev.example", "127.0.0.1:4000", 404),
        ("https://polydev.example:8443", "polydev.example:8443", 404),
        ("https://polydev.example", "evil.polydev.example", 403),
        ("https://polydev.example", "polydev.example.evil", 403),
    ],
)
async def test_unknown_host_names_are_refused(
    public_url: str | None, host: str, status: int
) -> None:
    answer = await _app(public_url).get(
        "/nowhere", headers={"host": host, "x-forwarded-host": "polydev.example"}
    )
    assert answer.status_code == status


async def test_https_public_url_sends_hsts() -> None:
    for url, documented in (("https://polydev.example", True), ("http://polydev.example", False)):
        headers = (await _app(url).get("/nowhere")).headers
        assert ("strict-transport-security" in headers) is documented


def test_route_documents_its_own_and_common_errors() -> None:
    documented = problem_responses(MachineBusy, NoSuchMachine)
    assert list(documented) == [401, 403, 404, 409, 413, 422, 503]
    schema = documented[409]["content"]["application/problem+json"]["schema"]
    assert schema["properties"]["code"]["enum"] == ["machine-busy"]
    assert 401 not in public_problem_responses()
    assert set(problem_responses(TooManyRequests)[429]["headers"]) == {"Retry-After"}
