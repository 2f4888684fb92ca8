"""Endpoints refuse malformed requests and limit how long they wait."""

import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from aiohttp.test_utils import TestClient, TestServer
from login_recipes import URL

from polydev.guest.browser_service.api import Api
from polydev.guest.browser_service.settings import ServiceSettings

TOKEN = "a-token-of-this-machine"
PROVIDER = """
id = "made_up"
[login]
kind = "terminal"
argv = ["sh", "-c", "sleep 1000"]
url_hosts = ["id.example.test"]
callback_path = "/back"
callback_ports = []
[paste]
accepts = "callback_url"
code_pattern = ""
url_redirect = ""
ready_text = ""
ready_within_s = 1
[credentials]
path = "/root/login.json"
max_bytes = 4096
required = ["/token"]
"""


class Running:
    def __init__(self, api: Api, client: TestClient, folder: Path) -> None:
        self.api = api
        self.folder = folder
        self._client = client

    async def __call__(self, method: str, path: str, **options: object) -> tuple[int, dict]:
        headers = {"Authorization": f"Bearer {TOKEN}", "Host": "localhost:8080"}
        answer = await self._client.request(method, path, headers=headers, **options)
        return answer.status, await answer.json()

    async def start(self) -> tuple[int, dict]:
        return await self("POST", "/auth/made_up", json={"sessionId": "s-1"})


@pytest.fixture
async def call(tmp_path: Path) -> AsyncIterator[Running]:
    (tmp_path / "token").write_text(TOKEN)
    (tmp_path / "made_up.toml").write_text(PROVIDER)
    settings = ServiceSettings(
        token_file=tmp_path / "token",
        environment_file=tmp_path / "environment",
        url_fifo=tmp_path / "fifo",
        providers=tmp_path,
        home=tmp_path,
        debugging_port=1,
        browser_limit_s=0.1,
    )
    api = Api(settings)
    async with TestClient(TestServer(api.application())) as client:
        yield Running(api, client, tmp_path)
        await api.close()


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'"x"', b"\xff", b"[" * 10_000])
async def test_a_body_must_be_a_json_object(call: Running, body: bytes) -> None:
    status, problem = await call("POST", "/auth/made_up", data=body)
    assert (status, problem["detail"]) == (400, "the body is not a JSON object")


async def test_a_body_has_a_limit(call: Running) -> None:
    status, problem = await call("POST", "/auth/made_up", data=b"x" * 20_000)
    assert (status, problem["code"]) == (413, "http_error")


@pytest.mark.parametrize("session", [None, 7, "", "a b", "../x", "x" * 65])
async def test_a_session_has_an_id(call: Running, session: object) -> None:
    status, problem = await call("POST", "/auth/made_up", json={"sessionId": session})
    assert (status, problem["code"]) == (422, "invalid_session_id")


async def test_an_unknown_provider_is_missing(call: Running) -> None:
    status, problem = await call("POST", "/auth/nobody", json={"sessionId": "s-1"})
    assert (status, problem["code"]) == (404, "unknown_provider")


async def test_login_that_was_not_started_is_unknown(call: Running) -> None:
    for path in ("oauth-url", "credentials/status", "state"):
        assert (await call("GET", f"/auth/made_up/{path}"))[0] == 404
    assert (await call("POST", "/auth/made_up/input", json={"code": "x"}))[0] == 404


async def test_input_is_one_of_two_texts(call: Running) -> None:
    await call.start()
    for body in ({}, {"code": 7}, {"code": "a", "callbackUrl": "b"}, {"callbackUrl": None}):
        status, problem = await call("POST", "/auth/made_up/input", json=body)
        assert (status, problem["code"]) == (422, "invalid_input")
    status, problem = await call("POST", "/auth/made_up/input", json={"code": "abc"})
    assert (status, problem["code"]) == (422, "paste_refused")


async def test_wait_ends_with_a_change_or_the_limit(call: Running) -> None:
    _, state = await call.start()
    before = time.monotonic()
    status, problem = await call("GET", "/auth/made_up/oauth-url?wait=1")
    assert (status, problem["code"]) == (404, "not_known_yet")
    assert 0.9 < time.monotonic() - before < 20
    call.api.url_arrived(URL)
    status, answer = await call("GET", "/auth/made_up/oauth-url?wait=30")
    assert answer == {"url": URL, "ownBrowserUrl": URL, "accepts": "callback_url"}
    path = f"/auth/made_up/state?after={state['version']}&wait=30"
    assert (await call("GET", path))[1]["step"] == "waiting_for_person"
    status, answer = await call("GET", "/auth/made_up/credentials/status")
    assert (status, answer["ready"], answer["failed"]) == (200, False, False)


@pytest.mark.parametrize("wait", ["x", "1.5", "", "1e9", "9999999999"])
async def test_wait_is_a_whole_number(call: Running, wait: str) -> None:
    await call.start()
    assert (await call("GET", f"/auth/made_up/oauth-url?wait={wait}"))[0] == 400


async def test_missing_token_file_refuses_everyone(call: Running) -> None:
    for content in ("", "\n", None):
        if content is None:
            (call.folder / "token").unlink()
        else:
            (call.folder / "token").write_text(content)
        status, problem = await call("GET", "/auth/made_up/state")
        assert (status, problem["code"]) == (401, "wrong_token")


async def test_replaced_token_is_the_only_one(call: Running) -> None:
    await call.start()
    (call.folder / "token").write_text("another")
    assert (await call("GET", "/auth/made_up/state"))[0] == 401
