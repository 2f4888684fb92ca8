"""Chats with simulated CLIs, over the API: what a turn tells, and what survives what."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from api_users import a_user
from chatting import Event, Talk, a_chat, connected, joined_text, kinds
from controller_world import World, a_world

from polydev.shared.host_protocol import RemoveFiles, StartMachine


@pytest.fixture
async def world(some_database_url: str) -> AsyncIterator[World]:
    grace = {"POLYDEV_CHAT_STOP_GRACE_S": "3"}
    async with a_world({}, DATABASE_URL=some_database_url, **grace) as it:
        await it.controller.start()
        await connected(it.controller, "codex")
        yield it


@pytest.fixture
async def talk(world: World) -> Talk:
    return await a_chat(world.controller)


def ending(events: list[Event]) -> tuple[str, str | None]:
    """Why the last turn ended, and with what problem."""
    last = events[-1]
    assert last["kind"] == "turn_ended"
    return last["reason"], last["error"] and last["error"]["code"]


async def test_a_turn_is_told_from_its_prompt_to_its_end(talk: Talk) -> None:
    events = await talk.turn("Hello there")
    assert kinds(events) == ["user", "title", "text", "turn_ended"]
    assert joined_text(events, "user") == "Hello there"
    assert joined_text(events) == "You said: Hello there"
    assert ending(events) == ("end_turn", None)
    view = await talk.view()
    assert (view["status"], view["turn"], view["title"]) == ("idle", 1, "Hello there")


async def test_what_is_streamed_and_what_is_stored_is_the_same(talk: Talk) -> None:
    heard = await talk.turn("plan\nthink: hm\nwrite a.txt: b\nslowly: 40")
    stored = await talk.stored()
    assert kinds(stored) == kinds(heard)
    for kind in ("user", "text", "thought"):
        assert joined_text(stored, kind) == joined_text(heard, kind)
    others = [it for it in heard if it["kind"] not in ("text", "thought")]
    assert [it for it in stored if it["kind"] not in ("text", "thought")] == others
    assert len([it for it in heard if it["kind"] == "text"]) > 20, "it came piece by piece"


@pytest.mark.parametrize(("choice", "tells"), [("allow_once", "Wrote"), ("reject_once", "left")])
async def test_the_person_decides_what_the_cli_may_do(
    world: World, talk: Talk, choice: str, tells: str
) -> None:
    number = await talk.ask("write a.txt: hello")
    asked = (await talk.until("permission", number))[-1]
    assert (await talk.view())["status"] == "waiting"
    assert asked["content"][0]["newText"] == "hello\n"
    await talk.allow(asked, choice)
    events = await talk.until("turn_ended", number)
    [answered] = [it for it in events if it["kind"] == "permission_answered"]
    assert answered["requestId"] == asked["requestId"]
    assert tells in joined_text(events)
    tools = [it for it in events if it["kind"] == "tool"]
    assert tools[-1]["status"] == ("completed" if choice == "allow_once" else "failed")
    async with world.agent.host() as host:
        machine = (await talk.view())["vmId"]
        files = await host.read_file(machine, "/root/a.txt") if choice == "allow_once" else b""
    assert files == (b"hello\n" if choice == "allow_once" else b"")


async def test_a_decision_is_made_once(talk: Talk) -> None:
    number = await talk.ask("write a.txt: hello")
    asked = (await talk.until("permission", number))[-1]
    path = f"{talk.path}/permissions/{asked['requestId']}"
    async with talk.controller.client() as client:
        assert (await client.post(path, json={"optionId": "no-option"})).status_code == 422
        elsewhere = await client.post(f"{talk.path}/permissions/9-9", json={"optionId": "x"})
        assert elsewhere.json()["code"] == "no-such-permission"
        answers = [await client.post(path, json={"optionId": "reject_once"}) for _ in range(2)]
    assert [it.status_code for it in answers] == [202, 409]
    await talk.until("turn_ended", number)


async def test_a_turn_can_be_stopped_wherever_it_is(talk: Talk) -> None:
    for prompt, kind in (("slowly: 500", "text"), ("write a.txt: b", "permission")):
        number = await talk.ask(prompt)
        await talk.until(kind, number)
        await talk.controller.ask("POST", f"{talk.path}/stop")
        events = await talk.until("turn_ended", number)
        assert ending(events) == ("cancelled", None), prompt
    number = await talk.ask("slowly: 500")
    await talk.controller.ask("POST", f"{talk.path}/stop")
    assert ending(await talk.until("turn_ended", number)) == ("cancelled", None)
    assert joined_text(await talk.turn("and now")) == "You said: and now"


async def test_who_reloads_in_the_middle_is_told_each_event_once_in_order(talk: Talk) -> None:
    number = await talk.ask("slowly: 60")
    whole = asyncio.create_task(talk.until("turn_ended", number))
    heard: list[Event] = []
    while not heard or heard[-1]["kind"] != "turn_ended":
        known = heard[-1]["id"] if heard else 0
        async with asyncio.timeout(60):
            count = 0
            async for event in talk.listen(known):
                heard.append(event)
                count += 1
                if count == 5 or event["kind"] == "turn_ended":
                    break
    ids = [it["id"] for it in heard]
    assert ids == sorted(set(ids))
    assert joined_text(heard) == joined_text(await whole) == joined_text(await talk.stored())
    assert joined_text(heard)


async def test_while_one_turn_goes_on_there_is_no_other(talk: Talk) -> None:
    number = await talk.ask("slowly: 500")
    async with talk.controller.client() as client:
        refused = await client.post(f"{talk.path}/turns", json={"text": "another"})
    assert (refused.status_code, refused.json()["code"]) == (409, "chat-busy")
    await talk.controller.ask("POST", f"{talk.path}/stop")
    await talk.until("turn_ended", number)


async def test_two_chats_with_one_cli_do_not_mix(world: World, talk: Talk) -> None:
    other = await a_chat(world.controller)
    one, two = await asyncio.gather(talk.turn("slowly: 12"), other.turn("slowly: 15"))
    assert [joined_text(one).count(it) for it in ("of 12", "of 15")] == [12, 0]
    assert [joined_text(two).count(it) for it in ("of 12", "of 15")] == [0, 15]
    assert world.controller.log.read_text().count("the agent of codex runs") == 1


async def test_a_chat_is_renamed_and_deleted(world: World, talk: Talk) -> None:
    await talk.turn("the first words")
    renamed = await talk.controller.ask("PATCH", talk.path, {"title": " A better\nname "})
    assert renamed["title"] == "A better name"
    number = await talk.ask("slowly: 500")
    await talk.until("text", number)
    async with world.controller.client() as client:
        assert (await client.delete(talk.path)).status_code == 204
        gone = await client.get(f"{talk.path}/events")
        assert (gone.status_code, gone.json()["code"]) == (404, "no-such-chat")
        assert (await client.get("/api/chats")).json() == []
    assert joined_text(await (await a_chat(world.controller)).turn("hello")) == "You said: hello"


async def test_chats_are_listed_by_cli_the_newest_first(world: World) -> None:
    made = [await a_chat(world.controller, it) for it in ("codex", "claude_code", "codex")]
    listed = await world.controller.ask("GET", "/api/chats?provider=codex")
    assert [it["chatId"] for it in listed] == [made[2].chat_id, made[0].chat_id]


async def test_without_a_login_or_a_running_machine_it_says_what_to_do(world: World) -> None:
    unconnected = await a_chat(world.controller, "claude_code")
    assert await _refused(unconnected) == (404, "not-connected", "Connect Claude Code")
    talk = await a_chat(world.controller)
    await talk.turn("hello")
    machine = (await talk.view())["vmId"]
    await world.controller.ask("POST", f"/api/vm/{machine}/stop")
    await world.until_machine(machine, "stopped")
    status, code, hint = await _refused(talk)
    assert (status, code) == (409, "machine-busy")
    assert "Start the machine" in hint
    await world.controller.ask("POST", f"/api/vm/{machine}/start")
    await world.until_machine(machine, "running")
    assert joined_text(await talk.turn("again")) == "You said: again"


async def _refused(talk: Talk) -> tuple[int, str, str]:
    async with talk.controller.client() as client:
        answer = await client.post(f"{talk.path}/turns", json={"text": "hello"})
    return answer.status_code, answer.json()["code"], answer.json()["hint"]


async def test_a_cli_that_fails_says_why(talk: Talk) -> None:
    events = await talk.turn("fail: out of cheese")
    assert ending(events) == ("failed", "chat-failed")
    assert "out of cheese" in events[-1]["error"]["message"]
    assert joined_text(await talk.turn("again")) == "You said: again"


async def test_a_login_that_is_gone_is_told(world: World, talk: Talk) -> None:
    await talk.turn("hello")
    machine = (await talk.view())["vmId"]
    async with world.agent.host() as host:
        files = RemoveFiles(vm_id=machine, paths=["/root/.codex/auth.json"])
        await host.run("test-remove", files, 30)
    assert ending(await talk.turn("hello again")) == ("failed", "not-connected")


async def test_a_controller_that_dies_leaves_a_turn_interrupted(world: World, talk: Talk) -> None:
    await talk.turn("remember me")
    number = await talk.ask("slowly: 400")
    before = await talk.until("text", number)
    os.kill(world.controller.pid, signal.SIGKILL)
    await world.controller.ended()
    await world.bury()
    await world.controller.start()
    after = await talk.until("turn_ended", number, before[-1]["id"])
    assert ending(after) == ("interrupted", "chat-failed")
    events = await talk.turn("are you there")
    assert joined_text(events) == "You said: are you there"
    assert "notice" not in kinds(events), "the conversation was taken up, not begun anew"
    ids = [it["id"] for it in await talk.stored()]
    assert ids == sorted(set(ids))


async def test_a_controller_that_is_told_to_end_ends_its_turns(world: World, talk: Talk) -> None:
    number = await talk.ask("slowly: 400")
    await talk.until("text", number)
    assert await world.controller.end() == 0
    await world.controller.start()
    assert ending(await talk.until("turn_ended", number)) == ("interrupted", "chat-failed")


async def test_a_host_agent_and_machine_that_are_started_again_are_asked_again(
    world: World, talk: Talk
) -> None:
    """Simulated machines end with their host agent, so both are gone at once."""
    number = await talk.ask("slowly: 400")
    await talk.until("text", number)
    machine = (await talk.view())["vmId"]
    await world.agent.kill()
    events = await talk.until("turn_ended", number)
    assert events[-1]["reason"] == "interrupted"
    await world.agent.start()
    async with world.agent.host() as host:
        await host.run("test-start", StartMachine(vm_id=machine), 30)
    events = await talk.turn("are you there")
    assert joined_text(events) == "You said: are you there", events[-1]
    assert "notice" not in kinds(events), "the conversation was taken up, not begun anew"


async def test_a_conversation_that_the_cli_forgot_begins_anew_and_says_so(
    world: World, talk: Talk
) -> None:
    await talk.turn("remember the blue door")
    machine = (await talk.view())["vmId"]
    await world.controller.end()
    kept = world.agent.state_dir / "machines" / machine / "simulated-root"
    for path in (kept / "root/.polydev-simulated/sessions").iterdir():
        path.unlink()
    await world.controller.start()
    events = await talk.turn("what did I say")
    [notice] = [it for it in events if it["kind"] == "notice"]
    assert notice["code"] == "session-lost"
    assert "blue door" in joined_text(events), "the CLI was told what had been said"


async def test_chats_of_others_are_as_if_they_were_not_there(world: World, talk: Talk) -> None:
    await talk.turn("a secret thing")
    stranger = await a_user(world.controller, "stranger")
    async with stranger.by_cookie() as client:
        for method, path, body in _everything(talk):
            answer = await client.request(method, path, json=body)
            assert (answer.status_code, answer.json()["code"]) == (404, "no-such-chat"), path
        assert (await client.get("/api/chats")).json() == []
    assert (await talk.view())["title"] == "a secret thing"


def _everything(talk: Talk) -> list[tuple[str, str, Any]]:
    return [
        ("GET", talk.path, None),
        ("PATCH", talk.path, {"title": "mine"}),
        ("DELETE", talk.path, None),
        ("POST", f"{talk.path}/turns", {"text": "hello"}),
        ("POST", f"{talk.path}/stop", None),
        ("POST", f"{talk.path}/permissions/1-1", {"optionId": "x"}),
        ("GET", f"{talk.path}/events", None),
        ("GET", f"{talk.path}/stream", None),
    ]


async def test_people_have_so_many_chats_and_no_more() -> None:
    async with a_world(POLYDEV_CHATS_EACH="2") as world:
        await world.controller.start()
        user = await a_user(world.controller, "somebody")
        async with user.by_cookie() as client:
            asked = {"provider": "codex"}
            answers = [await client.post("/api/chats", json=asked) for _ in range(3)]
            assert [it.status_code for it in answers] == [201, 201, 403]
            key = {"idempotency-key": "one-chat"}
            await client.delete(f"/api/chats/{answers[0].json()['chatId']}")
            again = [await client.post("/api/chats", json=asked, headers=key) for _ in range(2)]
            assert again[0].json() == again[1].json()
            told = (await client.get("/api/account/audit")).json()
        assert [it["action"] for it in told][:3] == ["chat.create", "chat.delete", "chat.create"]


async def test_any_controller_may_be_asked(postgres: Any) -> None:
    async with a_world(DATABASE_URL=postgres.database()) as world:
        await world.controller.start()
        other = world.another()
        await other.start()
        await connected(world.controller, "codex")
        talk = await a_chat(world.controller)
        await talk.turn("hello")
        elsewhere = talk.at(other)
        number = await elsewhere.ask("write a.txt: b\nslowly: 20")
        asked = (await elsewhere.until("permission", number))[-1]
        await elsewhere.allow(asked)
        one, two = await asyncio.gather(
            talk.until("turn_ended", number), elsewhere.until("turn_ended", number)
        )
        assert joined_text(one) == joined_text(two)
        logs = "".join(it.log.read_text() for it in (world.controller, other))
        assert logs.count("the agent of codex runs") == 1, "who holds the agent does the turn"
        number = await talk.ask("slowly: 500")
        await talk.until("text", number)
        await elsewhere.controller.ask("POST", f"{talk.path}/stop")
        assert ending(await elsewhere.until("turn_ended", number)) == ("cancelled", None)


async def test_a_dead_controllers_turn_is_ended_by_another(postgres: Any) -> None:
    async with a_world(DATABASE_URL=postgres.database()) as world:
        await world.controller.start()
        await connected(world.controller, "codex")
        talk = await a_chat(world.controller)
        number = await talk.ask("slowly: 400")
        await talk.until("text", number)
        await world.controller.kill()
        await world.bury()
        other = world.another()
        await other.start()
        elsewhere = talk.at(other)
        assert ending(await elsewhere.until("turn_ended", number)) == ("interrupted", "chat-failed")
        assert joined_text(await elsewhere.turn("hello")) == "You said: hello"


async def test_a_wrong_place_to_go_on_from_is_the_beginning(talk: Talk) -> None:
    await talk.turn("hello")
    async with talk.controller.client() as client, asyncio.timeout(20):
        headers = {"last-event-id": "nonsense"}
        async with client.stream("GET", f"{talk.path}/stream", headers=headers) as answer:
            lines = answer.aiter_lines()
            heard = [await anext(lines) for _ in range(4)]
    assert "id: 1000001" in heard
    assert isinstance(client, httpx.AsyncClient)
