"""Observability of a controller: events, metrics, audit log, log lines and traces."""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from typing import Any

import httpx
import pytest
from collector import running_collector
from controller_process import TOKEN, ControllerProcess
from controller_world import World, open_world
from listening import Listener
from prometheus_client.parser import text_string_to_metric_families

METRICS_TOKEN = "only-for-prometheus-0123"


@asynccontextmanager
async def _world(**more: str) -> AsyncIterator[World]:
    settings = {"POLYDEV_METRICS_TOKEN": METRICS_TOKEN, "POLYDEV_LOG_JSON": "1"}
    async with open_world(**settings, **more) as it:
        await it.controller.start()
        await it.controller.call("GET", "/health")
        yield it


@pytest.fixture
async def world() -> AsyncIterator[World]:
    async with _world() as it:
        yield it


@pytest.fixture
async def world_on_either(database_url: str) -> AsyncIterator[World]:
    async with _world(DATABASE_URL=database_url) as it:
        yield it


async def _events_until_end(
    controller: ControllerProcess, until: str
) -> list[tuple[int, str, Any]]:
    """All events up to the end of a session."""
    async with controller.client() as client:
        listener = Listener(client)
        async with aclosing(listener.listen(after="0")) as events:
            async for kind, data in events:
                if kind == "session" and data["subject"] == until and data["status"] == "completed":
                    break
    return listener.received


async def test_listener_misses_no_event_across_kills(
    world_on_either: World,
) -> None:
    controller = world_on_either.controller
    done: set[str] = set()
    wanted: set[str] = set()
    client = controller.client()
    listener = Listener(client)
    listening = asyncio.Event()

    async def listen() -> None:
        while not wanted or done != wanted:
            try:
                async with aclosing(
                    listener.listen(**({} if listener.last_id else {"after": "0"}))
                ) as it:
                    listening.set()
                    async for kind, data in it:
                        if kind == "session" and data["status"] == "completed":
                            done.add(data["subject"])
                            if done == wanted:
                                return
            except httpx.HTTPError:
                await asyncio.sleep(0.05)  # reconnect, as a browser does

    hearing = asyncio.create_task(listen())
    try:
        async with asyncio.timeout(120):
            ids = [await controller.connect(it) for it in ("codex", "claude_code")]
            wanted.update(ids)
            for step in ("create-machines", "capture"):
                while not any(data.get("step") == step for _, _, data in listener.received):
                    await asyncio.sleep(0.02)
                await controller.kill()
                await controller.start()
            await hearing
    finally:
        hearing.cancel()
        await client.aclose()
    last = next(
        data["subject"]
        for _, kind, data in reversed(listener.received)
        if kind == "session" and data["status"] == "completed"
    )
    everything = await _events_until_end(controller, last)
    assert listener.received == everything
    numbers = [number for number, _, _ in listener.received]
    assert numbers == sorted(set(numbers))
    assert {kind for _, kind, _ in everything} >= {"session", "machine", "credential"}
    assert "http" not in json.dumps(everything)


async def test_new_listener_gets_only_new_events(world: World) -> None:
    async with world.controller.client() as client:
        listener = Listener(client)

        async def first() -> tuple[str, dict[str, Any]]:
            async with aclosing(listener.listen()) as events:
                async for event in events:
                    if event[1]["status"] == "running":
                        return event
            raise AssertionError("the stream ended")

        async with asyncio.timeout(60):
            hearing = asyncio.create_task(first())
            while not listener.last_id:  # it is subscribed once it has an id
                await asyncio.sleep(0.02)
            await client.post("/api/vm/create", json={"vmType": "cli"})
            kind, data = await hearing
    assert kind == "machine"
    assert data["kind"] == "cli"


async def test_listener_gets_events_of_another_controller(postgresql_url: str) -> None:
    async with _world(DATABASE_URL=postgresql_url) as world:
        other = world.add_controller()
        await other.start()
        async with other.client() as client:
            listener = Listener(client)
            async with asyncio.timeout(60), aclosing(listener.listen(after="0")) as events:
                made = await world.controller.call("POST", "/api/vm/create", {"vmType": "cli"})
                async for _, data in events:
                    if (data["subject"], data["status"]) == (made["vm_id"], "running"):
                        return
    raise AssertionError("the stream ended")


@pytest.mark.parametrize("wanted", ["999999999", "nonsense", "-1", "9" * 32])
async def test_stale_listener_gets_a_reset(world: World, wanted: str) -> None:
    async with world.controller.client() as client:
        listener = Listener(client, last_id=wanted)
        async with asyncio.timeout(30), aclosing(listener.listen()) as events:
            async for kind, _ in events:
                assert kind == "reset"
                break
    assert listener.last_id == "0"


async def test_streams_per_user_are_limited(world: World) -> None:
    async with world.controller.client() as client, asyncio.TaskGroup() as group:
        started = asyncio.Semaphore(0)

        async def hold() -> None:
            async with client.stream("GET", "/api/events") as answer:
                assert answer.status_code == 200
                started.release()
                await asyncio.Event().wait()

        holding = [group.create_task(hold()) for _ in range(16)]
        for _ in holding:
            await asyncio.wait_for(started.acquire(), 30)
        refused = await client.get("/api/events")
        assert refused.status_code == 429
        assert refused.headers["retry-after"].isdecimal()
        holding[0].cancel()
        while (await client.get("/metrics")).text.find("polydev_event_streams 15.0") < 0:
            await asyncio.sleep(0.05)
        holding.append(group.create_task(hold()))
        await asyncio.wait_for(started.acquire(), 30)
        for task in holding:
            task.cancel()


async def test_stream_ends_when_its_token_is_revoked(world: World) -> None:
    async with world.controller.client() as client:
        made = await client.post("/api/account/tokens", json={"name": "t", "scopes": ["read"]})
        assert made.status_code == 201, made.text
        token = made.json()
        bearer = {"authorization": f"Bearer {token['token']}"}
        async with client.stream("GET", "/api/events", headers=bearer) as answer:
            assert answer.status_code == 200
            lines = answer.aiter_lines()
            await anext(lines)
            gone = await client.delete(f"/api/account/tokens/{token['tokenId']}")
            assert gone.is_success, gone.text
            async with asyncio.timeout(30):
                async for line in lines:
                    assert not line.startswith("data"), line
        assert (await client.get("/api/events", headers=bearer)).status_code == 401


async def _metrics(client: httpx.AsyncClient) -> dict[str, dict[tuple[str, ...], float]]:
    """Values by metric name, then by label values in the order of label names."""
    answer = await client.get("/metrics", headers={"authorization": f"Bearer {METRICS_TOKEN}"})
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    found: dict[str, dict[tuple[str, ...], float]] = {}
    for family in text_string_to_metric_families(answer.text):
        for sample in family.samples:
            labels = tuple(value for _, value in sorted(sample.labels.items()))
            found.setdefault(sample.name, {})[labels] = sample.value
    return found


async def test_metrics_report_state_and_activity(world: World) -> None:
    session_id = await world.controller.connect("codex")
    assert (await world.controller.wait_for_session(session_id, "completed"))[
        "status"
    ] == "completed"
    async with world.controller.client() as client:
        found = await _metrics(client)
    assert found["polydev_machines"][("local", "cli", "running")] == 1
    assert found["polydev_connect_sessions_total"][("codex", "completed")] == 1
    assert found["polydev_credentials"][("codex",)] == 1
    assert found["polydev_queue_length"][()] == 0
    assert found["polydev_host_memory_free_bytes"][("local",)] > 0
    steps = {labels[1] for labels in found["polydev_workflow_step_duration_seconds_count"]}
    assert {"create-machines", "capture", "write", "destroy-browser"} <= steps
    operations = {it[0] for it in found["polydev_host_operation_duration_seconds_count"]}
    assert "machine.create" in operations
    assert found["polydev_vault_operation_duration_seconds_count"][("seal", "ok")] == 1
    assert ("POST", "/api/auth/start", "202") in found["polydev_http_requests_total"]
    assert found["polydev_audit_entries_total"][("session.start",)] == 1
    assert found["process_resident_memory_bytes"][()] > 0
    assert "polydev_build_info" in found


async def test_only_prometheus_and_administrators_read_metrics(world: World) -> None:
    async with world.controller.client() as client:
        assert (await client.get("/metrics")).status_code == 200
        for authorization in ("", "Bearer x", f"Basic {METRICS_TOKEN}", f"Bearer {METRICS_TOKEN}x"):
            answer = await client.get("/metrics", headers={"authorization": authorization})
            assert answer.status_code == 401, authorization
        made = await client.post("/api/account/tokens", json={"name": "t", "scopes": ["read"]})
        bearer = {"authorization": f"Bearer {made.json()['token']}"}
        assert (await client.get("/metrics", headers=bearer)).status_code == 403
        prometheus = {"authorization": f"Bearer {METRICS_TOKEN}"}
        for path in ("/api/vm/list", "/api/admin/audit", "/api/events"):
            assert (await client.get(path, headers=prometheus)).status_code == 401


async def test_ids_do_not_multiply_metric_series(world: World) -> None:
    async with world.controller.client() as client:

        async def ask(number: int) -> None:
            some = uuid.uuid4()
            await client.get(f"/api/vm/vm-{some}")
            await client.get(f"/api/auth/session/{some}", headers={"x-request-id": f"id-{some}"})
            await client.get(f"/nowhere/{some}?token={some}")
            await client.request(f"M{number}", f"/api/vm/{some}")

        await ask(0)
        await _metrics(client)  # the metrics route counts, too
        before = {name: len(series) for name, series in (await _metrics(client)).items()}
        for start in range(0, 250, 25):
            await asyncio.gather(*(ask(number) for number in range(start, start + 25)))
        found = await _metrics(client)
    after = {name: len(series) for name, series in found.items()}
    assert after == before
    routes = {labels[1] for labels in found["polydev_http_requests_total"]}
    assert {"/api/vm/{vmId}", "none"} <= routes


async def test_audit_log_records_actors_and_actions(world: World) -> None:
    async with world.controller.client() as client:
        machine = (await client.post("/api/vm/create", json={"vmType": "cli"})).json()
        await client.post("/api/vm/destroy", json={"vmId": machine["vm_id"]})
        asked = {"subject": machine["vm_id"]}
        for path in ("/api/admin/audit", "/api/account/audit"):
            entries = (await client.get(path, params=asked)).json()
            assert [it["action"] for it in entries] == ["machine.destroy", "machine.create"], path
            assert {it["actor"] for it in entries} == {"admin"}
            assert entries[0]["source"] == "127.0.0.1"
        first = await client.get("/api/admin/audit", params={"limit": 1, "action": "machine."})
        assert first.json()[0]["action"] == "machine.destroy"
        second = await client.get(first.links["next"]["url"])
        assert second.json()[0]["action"] == "machine.create"
        none = {"until": "2020-01-01T00:00:00Z"}
        assert (await client.get("/api/admin/audit", params=none)).json() == []
        for bad in ({"action": "x"}, {"since": "yesterday"}, {"since": "2020-01-01T00:00:00"}):
            assert (await client.get("/api/admin/audit", params=bad)).status_code == 422, bad


async def test_log_lines_carry_their_context(world: World) -> None:
    async with world.controller.client() as client:
        asked = {"x-request-id": "from-a-test-0001"}
        started = await client.post("/api/auth/start", json={"provider": "codex"}, headers=asked)
        assert started.headers["x-request-id"] == "from-a-test-0001"
        forged = await client.get("/health", headers={"x-request-id": "a b"})
        assert len(forged.headers["x-request-id"]) == 32
        session_id = started.json()["sessionId"]
        await world.controller.wait_for_session(session_id, "completed")
    await world.controller.end()  # otherwise it might be writing the last line
    lines = [json.loads(it) for it in world.controller.log.read_text().splitlines()]
    of_request = [it for it in lines if it.get("request") == "from-a-test-0001"]
    assert any("POST /api/auth/start: 202" in it["message"] for it in of_request)
    assert {it.get("user") for it in of_request} == {"admin"}
    of_session = [it for it in lines if it.get("session") == session_id]
    assert any("capture" in it["message"] for it in of_session)
    assert {it["workflow"] for it in of_session} == {"connect"}
    agents = world.agent.log.read_text()
    assert "operation=create-vm-" in agents
    assert TOKEN not in str(lines)


async def test_trace_of_a_session_has_its_id_and_every_step() -> None:
    with running_collector() as collector:
        async with _world(POLYDEV_OTLP_ENDPOINT=collector.url) as world:
            session_id = await world.controller.connect("codex")
            assert (await world.controller.wait_for_session(session_id, "completed"))[
                "status"
            ] == "completed"
            await world.controller.end()
        (workflow,) = collector.named("connect")
        (request,) = collector.named("POST /api/auth/start")
        steps = {it.name for it in collector.spans if it.parent_id == workflow.span_id}
        operations = collector.named("host machine.create")
    assert workflow.trace_id == uuid.UUID(session_id).hex
    assert workflow.attributes == {"polydev.session": session_id, "polydev.workflow": "connect"}
    assert {"create-machines", "browser-ready", "start-login", "capture", "write"} <= steps
    assert {it.trace_id for it in operations} == {workflow.trace_id}
    assert all(it.attributes["polydev.operation"].startswith("create-vm-") for it in operations)
    assert request.attributes["http.response.status_code"] == 202
    exported = b"".join(collector.bodies)
    assert TOKEN.encode() not in exported
    assert b"http://" not in exported
    assert b"code=" not in exported
