"""Chats with simulated CLIs over the API: events of turns, and recovery."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from api_users import create_user
from chatting import ChatClient, Event, connect_cli, create_chat, joined_text, kinds
from controller_world import World, open_world

from polydev.shared.host_protocol import RemoveFiles, StartMachine


@pytest.fixture
async def world(some_database_url: str) -> AsyncIterator[World]:
    grace = {"POLYDEV_CHAT_STOP_GRACE_S": "3"}
    async with open_world({}, DATABASE_URL=some_database_url, **grace) as it:
        await it.controller.start()
        await connect_cli(it.controller, "codex")
        yield it


@pytest.fixture
async def chat(world: World) -> ChatClient:
    return await create_chat(world.controller)


def turn_end(events: list[Event]) -> tuple[str, str | None]:
    """The end reason and error code of the last turn."""
    last = events[-1]
    assert last["kind"] == "turn_ended"
    return last["reason"], last["error"] and last["error"]["code"]


async def test_turn_streams_events_from_prompt_to_end(chat: ChatClient) -> None:
    events = await chat.run_turn("Hello there")
    assert kinds(events) == ["user", "title", "text", "turn_ended"]
    assert joined_text(events, "user") == "Hello there"
    assert joined_text(events) == "You said: Hello there"
    assert turn_end(events) == ("end_turn", None)
    view = await chat.view()
    assert (view["status"], view["turn"], view["title"]) == ("idle", 1, "Hello there")


async def test_streamed_and_stored_events_are_equal(chat: ChatClient) -> None:
    heard = await chat.run_turn("plan\nthink: hm\nwrite a.txt: b\nslowly: 40")
    stored = await chat.stored_events()
    assert kinds(stored) == kinds(heard)
    for kind in ("user", "text", "thought"):
        assert joined_text(stored, kind) == joined_text(heard, kind)
    others = [it for it in heard if it["kind"] not in ("text", "thought")]
    assert [it for it in stored if it["kind"] not in ("text", "thought")] == others
    assert len([it for it in heard if it["kind"] == "text"]) > 20, "the answer is streamed"


@pytest.mark.parametrize(("choice", "text"), [("allow_once", "Wrote"), ("reject_once", "skipped")])
async def test_user_decides_on_permission_requests(
    world: World, chat: ChatClient, choice: str, text: str
) -> None:
    number = await chat.send("write a.txt: hello")
    asked = (await chat.wait_for("permission", number))[-1]
    assert (await chat.view())["status"] == "waiting"
    assert asked["content"][0]["newText"] == "hello\n"
    await chat.allow(asked, choice)
    events = await chat.wait_for("turn_ended", number)
    [answered] = [it for it in events if it["kind"] == "permission_answered"]
    assert answered["requestId"] == asked["requestId"]
    assert text in joined_text(events)
    tools = [it for it in events if it["kind"] == "tool"]
    assert tools[-1]["status"] == ("completed" if choice == "allow_once" else "failed")
    async with world.agent.host() as host:
        machine = (await chat.view())["vmId"]
        files = await host.read_file(machine, "/root/a.txt") if choice == "allow_once" else b""
    assert files == (b"hello\n" if choice == "allow_once" else b"")


async def test_permission_is_decided_once(chat: ChatClient) -> None:
    number = await chat.send("write a.txt: hello")
    asked = (await chat.wait_for("permission", number))[-1]
    path = f"{chat.path}/permissions/{asked['requestId']}"
    async with chat.controller.client() as client:
        assert (await client.post(path, json={"optionId": "no-option"})).status_code == 422
        elsewhere = await client.post(f"{chat.path}/permissions/9-9", json={"optionId": "x"})
        assert elsewhere.json()["code"] == "no-such-permission"
        answers = [await client.post(path, json={"optionId": "reject_once"}) for _ in range(2)]
    assert [it.status_code for it in answers] == [202, 409]
    await chat.wait_for("turn_ended", number)


async def test_turn_can_be_stopped_at_any_point(chat: ChatClient) -> None:
    for prompt, kind in (("slowly: 500", "text"), ("write a.txt: b", "permission")):
        number = await chat.send(prompt)
        await chat.wait_for(kind, number)
        await chat.controller.call("POST", f"{chat.path}/stop")
        events = await chat.wait_for("turn_ended", number)
        assert turn_end(events) == ("cancelled", None), prompt
    number = await chat.send("slowly: 500")
    await chat.controller.call("POST", f"{chat.path}/stop")
    assert turn_end(await chat.wait_for("turn_ended", number)) == ("cancelled", None)
    assert joined_text(await chat.run_turn("and now")) == "You said: and now"


async def test_reconnected_stream_has_each_event_once_in_order(chat: ChatClient) -> None:
    number = await chat.send("slowly: 60")
    whole = asyncio.create_task(chat.wait_for("turn_ended", number))
    heard: list[Event] = []
    while not heard or heard[-1]["kind"] != "turn_ended":
        known = heard[-1]["id"] if heard else 0
        async with asyncio.timeout(60):
            count = 0
            async for event in chat.stream(known):
                heard.append(event)
                count += 1
                if count == 5 or event["kind"] == "turn_ended":
                    break
    ids = [it["id"] for it in heard]
    assert ids == sorted(set(ids))
    assert joined_text(heard) == joined_text(await whole) == joined_text(await chat.stored_events())
    assert joined_text(heard)


async def test_second_turn_is_refused_during_a_turn(chat: ChatClient) -> None:
    number = await chat.send("slowly: 500")
    async with chat.controller.client() as client:
        refused = await client.post(f"{chat.path}/turns", json={"text": "another"})
    assert (refused.status_code, refused.json()["code"]) == (409, "chat-busy")
    await chat.controller.call("POST", f"{chat.path}/stop")
    await chat.wait_for("turn_ended", number)


async def test_two_chats_with_one_cli_do_not_mix_events(world: World, chat: ChatClient) -> None:
    other = await create_chat(world.controller)
    one, two = await asyncio.gather(chat.run_turn("slowly: 12"), other.run_turn("slowly: 15"))
    assert [joined_text(one).count(it) for it in ("of 12", "of 15")] == [12, 0]
    assert [joined_text(two).count(it) for it in ("of 12", "of 15")] == [0, 15]
    assert world.controller.log.read_text().count("the agent of codex runs") == 1


async def test_chat_is_renamed_and_deleted(world: World, chat: ChatClient) -> None:
    await chat.run_turn("the first words")
    renamed = await chat.controller.call("PATCH", chat.path, {"title": " A better\nname "})
    assert renamed["title"] == "A better name"
    number = await chat.send("slowly: 500")
    await chat.wait_for("text", number)
    async with world.controller.client() as client:
        assert (await client.delete(chat.path)).status_code == 204
        gone = await client.get(f"{chat.path}/events")
        assert (gone.status_code, gone.json()["code"]) == (404, "no-such-chat")
        assert (await client.get("/api/chats")).json() == []
    other = await create_chat(world.controller)
    assert joined_text(await other.run_turn("hello")) == "You said: hello"


async def test_chats_of_a_cli_are_listed_newest_first(world: World) -> None:
    made = [await create_chat(world.controller, it) for it in ("codex", "claude_code", "codex")]
    listed = await world.controller.call("GET", "/api/chats?provider=codex")
    assert [it["chatId"] for it in listed] == [made[2].chat_id, made[0].chat_id]


async def test_turn_without_login_or_machine_is_refused_with_a_hint(world: World) -> None:
    unconnected = await create_chat(world.controller, "claude_code")
    assert await _refused(unconnected) == (404, "not-connected", "Connect Claude Code")
    chat = await create_chat(world.controller)
    await chat.run_turn("hello")
    machine = (await chat.view())["vmId"]
    await world.controller.call("POST", f"/api/vm/{machine}/stop")
    await world.wait_for_machine(machine, "stopped")
    status, code, hint = await _refused(chat)
    assert (status, code) == (409, "machine-busy")
    assert "Start the machine" in hint
    await world.controller.call("POST", f"/api/vm/{machine}/start")
    await world.wait_for_machine(machine, "running")
    assert joined_text(await chat.run_turn("again")) == "You said: again"


async def _refused(chat: ChatClient) -> tuple[int, str, str]:
    async with chat.controller.client() as client:
        answer = await client.post(f"{chat.path}/turns", json={"text": "hello"})
    return answer.status_code, answer.json()["code"], answer.json()["hint"]


async def test_failed_turn_reports_the_error_of_the_cli(chat: ChatClient) -> None:
    events = await chat.run_turn("fail: out of cheese")
    assert turn_end(events) == ("failed", "chat-failed")
    assert "out of cheese" in events[-1]["error"]["message"]
    assert joined_text(await chat.run_turn("again")) == "You said: again"


async def test_turn_fails_when_the_login_is_gone(world: World, chat: ChatClient) -> None:
    await chat.run_turn("hello")
    machine = (await chat.view())["vmId"]
    async with world.agent.host() as host:
        files = RemoveFiles(vm_id=machine, paths=["/root/.codex/auth.json"])
        await host.run("test-remove", files, 30)
    assert turn_end(await chat.run_turn("hello again")) == ("failed", "not-connected")


async def test_turn_of_a_killed_controller_is_interrupted(world: World, chat: ChatClient) -> None:
    await chat.run_turn("remember me")
    number = await chat.send("slowly: 400")
    before = await chat.wait_for("text", number)
    os.kill(world.controller.pid, signal.SIGKILL)
    await world.controller.ended()
    await world.expire_leases()
    await world.controller.start()
    after = await chat.wait_for("turn_ended", number, before[-1]["id"])
    assert turn_end(after) == ("interrupted", "chat-failed")
    events = await chat.run_turn("are you there")
    assert joined_text(events) == "You said: are you there"
    assert "notice" not in kinds(events), "the conversation was taken up, not begun anew"
    ids = [it["id"] for it in await chat.stored_events()]
    assert ids == sorted(set(ids))


async def test_turn_of_a_stopped_controller_is_interrupted(world: World, chat: ChatClient) -> None:
    number = await chat.send("slowly: 400")
    await chat.wait_for("text", number)
    assert await world.controller.end() == 0
    await world.controller.start()
    assert turn_end(await chat.wait_for("turn_ended", number)) == ("interrupted", "chat-failed")


async def test_chat_continues_after_host_agent_and_machine_restart(
    world: World, chat: ChatClient
) -> None:
    """Simulated machines end with their host agent, so both end together."""
    number = await chat.send("slowly: 400")
    await chat.wait_for("text", number)
    machine = (await chat.view())["vmId"]
    await world.agent.kill()
    events = await chat.wait_for("turn_ended", number)
    assert events[-1]["reason"] == "interrupted"
    await world.agent.start()
    async with world.agent.host() as host:
        await host.run("test-start", StartMachine(vm_id=machine), 30)
    events = await chat.run_turn("are you there")
    assert joined_text(events) == "You said: are you there", events[-1]
    assert "notice" not in kinds(events), "the conversation was taken up, not begun anew"


async def test_lost_conversation_restarts_with_a_notice(world: World, chat: ChatClient) -> None:
    await chat.run_turn("remember the blue door")
    machine = (await chat.view())["vmId"]
    await world.controller.end()
    root = world.agent.state_dir / "machines" / machine / "simulated-root"
    for path in (root / "root/.polydev-simulated/sessions").iterdir():
        path.unlink()
    await world.controller.start()
    events = await chat.run_turn("what did I say")
    [notice] = [it for it in events if it["kind"] == "notice"]
    assert notice["code"] == "session-lost"
    assert "blue door" in joined_text(events), "the CLI received the history"


async def test_chats_of_other_users_are_not_found(world: World, chat: ChatClient) -> None:
    await chat.run_turn("a secret thing")
    stranger = await create_user(world.controller, "stranger")
    async with stranger.by_cookie() as client:
        for method, path, body in _all_events(chat):
            answer = await client.request(method, path, json=body)
            assert (answer.status_code, answer.json()["code"]) == (404, "no-such-chat"), path
        assert (await client.get("/api/chats")).json() == []
    assert (await chat.view())["title"] == "a secret thing"


def _all_events(chat: ChatClient) -> list[tuple[str, str, Any]]:
    return [
        ("GET", chat.path, None),
        ("PATCH", chat.path, {"title": "mine"}),
        ("DELETE", chat.path, None),
        ("POST", f"{chat.path}/turns", {"text": "hello"}),
        ("POST", f"{chat.path}/stop", None),
        ("POST", f"{chat.path}/permissions/1-1", {"optionId": "x"}),
        ("GET", f"{chat.path}/events", None),
        ("GET", f"{chat.path}/stream", None),
    ]


async def test_chats_per_user_are_limited() -> None:
    async with open_world(POLYDEV_CHATS_EACH="2") as world:
        await world.controller.start()
        user = await create_user(world.controller, "somebody")
        async with user.by_cookie() as client:
            asked = {"provider": "codex"}
            answers = [await client.post("/api/chats", json=asked) for _ in range(3)]
            assert [it.status_code for it in answers] == [201, 201, 403]
            key = {"idempotency-key": "one-chat"}
            await client.delete(f"/api/chats/{answers[0].json()['chatId']}")
            again = [await client.post("/api/chats", json=asked, headers=key) for _ in range(2)]
            assert again[0].json() == again[1].json()
            entries = (await client.get("/api/account/audit")).json()
        assert [it["action"] for it in entries][:3] == ["chat.create", "chat.delete", "chat.create"]


async def test_every_controller_serves_a_chat(postgres: Any) -> None:
    async with open_world(DATABASE_URL=postgres.database()) as world:
        await world.controller.start()
        other = world.add_controller()
        await other.start()
        await connect_cli(world.controller, "codex")
        chat = await create_chat(world.controller)
        await chat.run_turn("hello")
        elsewhere = chat.on_controller(other)
        number = await elsewhere.send("write a.txt: b\nslowly: 20")
        asked = (await elsewhere.wait_for("permission", number))[-1]
        await elsewhere.allow(asked)
        one, two = await asyncio.gather(
            chat.wait_for("turn_ended", number), elsewhere.wait_for("turn_ended", number)
        )
        assert joined_text(one) == joined_text(two)
        logs = "".join(it.log.read_text() for it in (world.controller, other))
        assert logs.count("the agent of codex runs") == 1, "its controller runs the turn"
        number = await chat.send("slowly: 500")
        await chat.wait_for("text", number)
        await elsewhere.controller.call("POST", f"{chat.path}/stop")
        assert turn_end(await elsewhere.wait_for("turn_ended", number)) == ("cancelled", None)


async def test_another_controller_ends_the_turn_of_a_dead_one(postgres: Any) -> None:
    async with open_world(DATABASE_URL=postgres.database()) as world:
        await world.controller.start()
        await connect_cli(world.controller, "codex")
        chat = await create_chat(world.controller)
        number = await chat.send("slowly: 400")
        await chat.wait_for("text", number)
        await world.controller.kill()
        await world.expire_leases()
        other = world.add_controller()
        await other.start()
        elsewhere = chat.on_controller(other)
        assert turn_end(await elsewhere.wait_for("turn_ended", number)) == (
            "interrupted",
            "chat-failed",
        )
        assert joined_text(await elsewhere.run_turn("hello")) == "You said: hello"


async def test_invalid_last_event_id_streams_from_the_start(chat: ChatClient) -> None:
    await chat.run_turn("hello")
    async with chat.controller.client() as client, asyncio.timeout(60):
        headers = {"last-event-id": "nonsense"}
        async with client.stream("GET", f"{chat.path}/stream", headers=headers) as answer:
            lines = answer.aiter_lines()
            heard = [await anext(lines) for _ in range(4)]
    assert "id: 1000001" in heard
    assert isinstance(client, httpx.AsyncClient)
