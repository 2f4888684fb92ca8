"""The API of a real controller over a real host agent with simulated machines."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import ExitStack
from typing import Any

import httpx
import pytest
from controller_process import TOKEN
from controller_world import World, open_world
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

from polydev.shared.host_protocol import STDOUT, ExecEnd, ExecRequest


@pytest.fixture
async def client(world: World) -> AsyncIterator[httpx.AsyncClient]:
    await world.controller.start()
    async with world.controller.client() as client:
        await client.get("/health")
        yield client


async def _machine(world: World, kind: str = "cli") -> str:
    view = await world.controller.call("POST", "/api/vm/create", {"vmType": kind})
    assert view["status"] == "creating"
    vm_id = str(view["vm_id"])
    while view["status"] == "creating":
        path = f"/api/vm/{vm_id}?after={view['version']}&wait=20"
        view = await world.controller.call("GET", path)
    assert view["status"] == "running", view
    return vm_id


def _problem(answer: httpx.Response) -> tuple[int, str]:
    assert answer.headers["content-type"] == "application/problem+json"
    body = answer.json()
    assert set(body) == {"type", "title", "status", "code", "detail", "hint"}
    assert body["status"] == answer.status_code
    return answer.status_code, body["code"]


_OPEN = {
    *("/", "/health", "/api/account/ways", "/api/account/sign-up", "/api/account/sign-in"),
    *("/api/account/oidc/start", "/api/account/oidc/callback"),
}


async def test_all_but_public_routes_need_a_token(
    client: httpx.AsyncClient,
) -> None:
    description = (await client.get("/openapi.json")).json()
    asked = 0
    for path, methods in description["paths"].items():
        for method in methods:
            if path in _OPEN:
                continue
            for token in ("-", "wrong", TOKEN[:-1], TOKEN + "x"):
                headers = {"authorization": f"Bearer {token}"}
                answer = await client.request(
                    method, path.replace("{", "").replace("}", ""), headers=headers, json={}
                )
                assert _problem(answer) == (401, "not-signed-in"), (method, path)
            asked += 1
    assert asked >= 14
    assert (await client.get("/", headers={"authorization": "-"})).status_code == 200
    assert (await client.get("/health", headers={"authorization": "-"})).json()["status"] == "ok"


async def test_invalid_requests_get_problem_responses(client: httpx.AsyncClient) -> None:
    asked = [
        ("POST", "/api/auth/start", {"provider": "nope"}, (422, "unknown-provider")),
        ("POST", "/api/auth/start", {"provider": 7}, (422, "bad-request")),
        ("POST", "/api/auth/start", {}, (422, "bad-request")),
        ("POST", "/api/auth/start", {"provider": "codex", "x": 1}, (422, "bad-request")),
        ("POST", "/api/auth/start", {"provider": "codex", "userId": "u"}, (404, "no-such-person")),
        ("POST", "/api/vm/create", {"vmType": "toaster"}, (422, "bad-request")),
        ("POST", "/api/vm/destroy", {"vmId": "vm-none"}, (404, "no-such-machine")),
        ("GET", "/api/vm/vm-none", None, (404, "no-such-machine")),
        ("GET", "/api/vm/vm-none/console", None, (404, "no-such-machine")),
        ("GET", "/api/vm/active-cli", None, (404, "no-such-machine")),
        ("GET", "/api/auth/session/none", None, (404, "no-such-session")),
        ("GET", "/api/auth/session/none/events", None, (404, "no-such-session")),
        ("POST", "/api/auth/session/none/cancel", {}, (404, "no-such-session")),
        ("POST", "/api/auth/session/none/input", {"code": "x"}, (404, "no-such-session")),
        ("POST", "/api/auth/session/none/input", {}, (422, "bad-request")),
        ("POST", "/api/chat/turn", {"provider": "codex", "text": "x"}, (404, "not-connected")),
        ("GET", "/api/nowhere", None, (404, "not-found")),
        ("PUT", "/api/vm/list", None, (405, "method-not-allowed")),
    ]
    for method, path, body, expected in asked:
        answer = await client.request(method, path, json=body)
        assert _problem(answer) == expected, (method, path, answer.text)
    assert (await client.get("/api/vm/active-cli")).json()["detail"] == "No active CLI VM"


async def test_oversized_request_is_refused(client: httpx.AsyncClient) -> None:
    async def endless() -> AsyncIterator[bytes]:
        for _ in range(200):
            yield b"x" * 1024

    for content in (b"x" * 200_000, endless()):
        answer = await client.post("/api/chat/turn", content=content)
        assert _problem(answer) == (413, "too-large")


@pytest.mark.parametrize("host", ["evil.test", "evil.test:80", "localhost.evil.test", "127.0.0.2"])
async def test_foreign_host_header_is_refused(client: httpx.AsyncClient, host: str) -> None:
    answer = await client.get("/health", headers={"host": host})
    assert _problem(answer) == (403, "not-allowed")


async def test_responses_carry_security_headers(client: httpx.AsyncClient) -> None:
    for path in ("/", "/api/nowhere", "/api/vm/list"):
        headers = (await client.get(path)).headers
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["content-security-policy"].startswith("default-src 'none'")
        assert headers["cache-control"] == "no-store"
        assert "server" not in headers


async def test_machine_is_created_listed_inspected_and_destroyed(
    world: World, client: httpx.AsyncClient
) -> None:
    vm_id = await _machine(world)
    [row] = (await client.get("/api/vm/list")).json()
    assert {"vm_id", "vm_type", "ip_address", "status", "created_at"} <= set(row)
    active = (await client.get("/api/vm/active-cli")).json()
    assert active["vmId"] == vm_id
    assert active["ipAddress"] == row["ip_address"]
    assert "POLYDEV-READY" in (await client.get(f"/api/vm/{vm_id}/console")).text
    doctor = (await client.get("/api/doctor")).json()
    assert all(check["ok"] for check in doctor["checks"])
    await world.destroy(vm_id)
    await world.assert_clean()
    assert _problem(await client.get(f"/api/vm/{vm_id}")) == (404, "no-such-machine")


async def test_failed_machine_has_an_error() -> None:
    async with open_world({"becomes_ready": False}, POLYDEV_MACHINE_LIMIT_S="1") as world:
        await world.controller.start()
        view = await world.controller.call("POST", "/api/vm/create", {"vmType": "cli"})
        while view["status"] == "creating":
            path = f"/api/vm/{view['vm_id']}?after={view['version']}&wait=20"
            view = await world.controller.call("GET", path)
        assert view["status"] == "failed"
        assert view["error"]["code"] == "machine-not-ready"
        assert await world.machines() == {}
        await world.destroy(view["vm_id"])
        await world.assert_clean()


async def _run(world: World, vm_id: str, request: ExecRequest, stdin: bytes) -> tuple[bytes, Any]:
    url = f"ws://127.0.0.1:{world.controller.port}/api/vm/{vm_id}/exec"
    out = b""
    async with connect(url, additional_headers={"Authorization": f"Bearer {TOKEN}"}) as socket:
        await socket.send(request.model_dump_json())
        await socket.send(stdin)
        await socket.send(b"")
        async for frame in socket:
            if isinstance(frame, str):
                return out, ExecEnd.model_validate_json(frame)
            assert frame[0] == STDOUT
            out += frame[1:]
    raise AssertionError("the stream ended without its end")


async def test_program_runs_in_a_machine(world: World, client: httpx.AsyncClient) -> None:
    vm_id = await _machine(world)
    text = "Grüße ".encode() * 30_000
    out, end = await _run(world, vm_id, ExecRequest(argv=["cat"]), text)
    assert (out, end.exit_code, end.error) == (text, 0, None)
    _, end = await _run(world, vm_id, ExecRequest(argv=["claude", "auth", "status"]), b"")
    assert end.exit_code == 1


async def test_program_is_refused_before_it_starts(world: World, client: httpx.AsyncClient) -> None:
    url = f"ws://127.0.0.1:{world.controller.port}/api/vm/vm-none/exec"
    for token, status in (("wrong", 401), (TOKEN, 404)):
        with pytest.raises(InvalidStatus) as refused:
            async with connect(url, additional_headers={"Authorization": f"Bearer {token}"}):
                pass
        assert refused.value.response.status_code == status


async def test_invalid_first_frame_ends_the_stream(world: World, client: httpx.AsyncClient) -> None:
    vm_id = await _machine(world)
    url = f"ws://127.0.0.1:{world.controller.port}/api/vm/{vm_id}/exec"
    for frame in ("{}", "not json", b"\x00"):
        async with connect(url, additional_headers={"Authorization": f"Bearer {TOKEN}"}) as socket:
            await socket.send(frame)
            end = ExecEnd.model_validate_json(await socket.recv())
        assert end.error is not None
        assert end.error.code == "bad-request"


@pytest.mark.parametrize(
    ("provider", "kinds"),
    [
        ("codex", ["text", "end"]),
        ("claude_code", ["delta", "text", "end"]),
        ("gemini_cli", ["delta", "end"]),
    ],
)
async def test_turn_streams_ndjson_lines(
    world: World, client: httpx.AsyncClient, provider: str, kinds: list[str]
) -> None:
    session = await world.controller.wait_for_session(await world.controller.connect(provider))
    assert session["status"] == "completed"
    body = {"provider": provider, "text": "-- say Grüße $HOME"}
    answer = await client.post("/api/chat/turn", json=body)
    assert answer.headers["content-type"] == "application/x-ndjson"
    events = [json.loads(line) for line in answer.text.splitlines()]
    assert events[-1] == {"type": "end", "ok": True, "text": "You said: -- say Grüße $HOME"}
    assert [event["type"] for event in events] == kinds


async def test_turn_without_a_login_ends_with_an_error(
    world: World, client: httpx.AsyncClient
) -> None:
    session = await world.controller.wait_for_session(await world.controller.connect("codex"))
    await world.destroy(session["cliVM"]["vmId"])
    body = {"provider": "codex", "text": "hello"}
    assert _problem(await client.post("/api/chat/turn", json=body)) == (404, "not-connected")
    await _machine(world)
    answer = await client.post("/api/chat/turn", json=body)
    error, end = [json.loads(line) for line in answer.text.splitlines()]
    assert error["type"] == "error"
    assert error["code"] == "chat-failed"
    assert "401" in error["message"]
    assert end == {"type": "end", "ok": False, "text": ""}


async def test_session_events_report_each_step_until_the_end(
    world: World, client: httpx.AsyncClient
) -> None:
    views = []
    with ExitStack() as holding:
        holding.enter_context(world.controller.delayed_workflows())
        session_id = await world.controller.connect("codex")
        async with client.stream("GET", f"/api/auth/session/{session_id}/events") as answer:
            assert answer.headers["content-type"].startswith("text/event-stream")
            holding.close()  # the first step starts once the stream is open
            async for line in answer.aiter_lines():
                if line.startswith("data: "):
                    views.append(json.loads(line.removeprefix("data: ")))
    assert views[-1]["status"] == "completed"
    assert len({view["version"] for view in views}) == len(views) > 5
    assert views[-1] == await world.controller.session(session_id)


async def test_long_poll_returns_at_the_change() -> None:
    async with open_world({"login_end": "never"}) as world:
        await world.controller.start()
        session_id = await world.controller.connect("codex")
        view = await world.controller.wait_for_session(session_id, "waiting_for_person")
        while view["step"] != "wait-for-person":
            view = await world.controller.session(session_id)
        path = f"/api/auth/session/{session_id}"
        same = await world.controller.call("GET", f"{path}?after={view['version']}&wait=1")
        assert same["version"] == view["version"]
        waiting = asyncio.create_task(
            world.controller.call("GET", f"{path}?after={view['version']}&wait=30")
        )
        done, _ = await asyncio.wait({waiting}, timeout=1)
        assert not done
        await world.controller.call("POST", f"{path}/cancel")
        changed = await asyncio.wait_for(waiting, 20)
        assert changed["version"] != view["version"]
        assert (await world.controller.wait_for_session(session_id))["status"] == "cancelled"
        async with world.controller.client() as client:
            again = await client.post(f"{path}/cancel")
            assert _problem(again) == (409, "session-ended")
            complete = await client.get(f"{path}/complete")
            assert _problem(complete) == (409, "session-not-completed")
