"""Hibernated machines: triggers of hibernation and resume, and their reports."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

from chatting import ChatClient, connect_cli, create_chat, joined_text, kinds
from controller_process import TOKEN
from controller_world import World, open_world
from websockets.asyncio.client import ClientConnection, connect

from polydev.shared.host_protocol import ExecEnd, ExecRequest, HibernateMachine, ResumeMachine

LIMIT_S = 60
CHAT = "a message in a chat"


@asynccontextmanager
async def open_connected_world(**settings: str) -> AsyncIterator[tuple[World, str]]:
    """A world with a connected Codex, and its CLI machine."""
    async with open_world(**settings) as world:
        await world.controller.start()
        yield world, await connect_cli(world.controller, "codex")


async def hibernate(world: World, vm_id: str) -> dict[str, Any]:
    """Hibernate a machine and wait for it."""
    await world.controller.call("POST", f"/api/vm/{vm_id}/hibernate")
    return await world.wait_for_machine(vm_id, "hibernated")


async def audit_entries(world: World, action: str) -> list[dict[str, Any]]:
    return list(await world.controller.call("GET", f"/api/admin/audit?action={action}"))


@asynccontextmanager
async def open_socket(world: World, vm_id: str, path: str) -> AsyncIterator[ClientConnection]:
    url = f"ws://127.0.0.1:{world.controller.port}/api/vm/{vm_id}/{path}"
    headers = {"Authorization": f"Bearer {TOKEN}"}
    async with connect(url, additional_headers=headers, max_size=None) as socket:
        yield socket


async def read_exec_end(socket: ClientConnection) -> ExecEnd:
    """The last frame of a program's stream."""
    async with asyncio.timeout(LIMIT_S):
        async for frame in socket:
            if isinstance(frame, str) and "notice" not in frame:
                return ExecEnd.model_validate_json(frame)
    raise AssertionError("the stream ended without its end")


# -- triggers of a resume--------------------------------------------------------------------------


async def _by_chat(world: World, vm_id: str) -> None:
    """The CLI continues the conversation from before hibernation."""
    chat = await create_chat(world.controller)
    await chat.run_turn("the first")
    await hibernate(world, vm_id)
    events = await chat.run_turn("the second")
    assert kinds(events) == ["user", "notice", "text", "turn_ended"], "and the session is not lost"
    [notice] = [it for it in events if it["kind"] == "notice"]
    assert (notice["code"], notice["text"]) == ("machine-wakes", "Its machine is resuming")
    assert joined_text(events) == "You said: the second"


async def _by_one_shot_turn(world: World, vm_id: str) -> None:
    asked = {"provider": "codex", "text": "hello"}
    async with world.controller.client() as client:
        answer = await client.post("/api/chat/turn", json=asked)
    events = [json.loads(line) for line in answer.text.splitlines()]
    assert events[0] == {"type": "notice", "text": "Its machine is resuming"}
    assert events[-1]["ok"], events


async def _by_terminal(world: World, vm_id: str) -> None:
    async with open_socket(world, vm_id, "terminal?wake=false") as socket:
        error = (await read_exec_end(socket)).error
        assert error is not None
        assert error.code == "machine-asleep"
    assert (await world.states())[vm_id] == "hibernated", "the request must not resume it"
    async with open_socket(world, vm_id, "terminal") as socket, asyncio.timeout(LIMIT_S):
        assert json.loads(await socket.recv()) == {"notice": "Its machine is resuming"}
        assert isinstance(await socket.recv(), bytes)
        await world.controller.call("POST", f"/api/vm/{vm_id}/hibernate")
        error = (await read_exec_end(socket)).error
        assert error is not None
        assert error.code == "machine-asleep", "the closed terminal gets the reason"
    await world.wait_for_machine(vm_id, "hibernated")
    async with open_socket(world, vm_id, "terminal") as socket, asyncio.timeout(LIMIT_S):
        while not isinstance(await socket.recv(), bytes):
            pass


async def _by_program(world: World, vm_id: str) -> None:
    async with open_socket(world, vm_id, "exec") as socket:
        request = ExecRequest(argv=["codex", "login", "status"])
        await socket.send(request.model_dump_json())
        await socket.send(b"")
        assert (await read_exec_end(socket)).exit_code == 0


async def _by_files(world: World, vm_id: str) -> None:
    """Send concurrent requests; one of them resumes it."""
    before = len(await audit_entries(world, "machine.resume"))
    path = f"/api/vm/{vm_id}/files?path=/root"
    await asyncio.gather(*(world.controller.call("GET", path) for _ in range(6)))
    assert len(await audit_entries(world, "machine.resume")) == before + 1


async def _by_validating(world: World, vm_id: str) -> None:
    [listed] = await world.controller.call("GET", "/api/credentials")
    path = f"/api/credentials/{listed['credentialId']}/validate"
    verdict = await world.controller.call("POST", path)
    assert verdict["validity"] == "valid", verdict


async def _by_login(world: World, vm_id: str) -> None:
    assert await connect_cli(world.controller, "claude_code") == vm_id


Use = Callable[[World, str], Coroutine[Any, Any, None]]
USES: tuple[tuple[Use, str], ...] = (
    (_by_chat, CHAT),
    (_by_one_shot_turn, "a message to a CLI"),
    (_by_terminal, "a terminal"),
    (_by_program, "a program"),
    (_by_files, "its files"),
    (_by_validating, "check of a login"),
    (_by_login, "a login"),
)


async def test_every_use_resumes_a_hibernated_machine(
    some_database_url: str,
) -> None:
    async with open_connected_world(DATABASE_URL=some_database_url) as (world, vm_id):
        for use, why in USES:
            if use is not _by_chat:
                await hibernate(world, vm_id)
            await use(world, vm_id)
            sleep = (await world.wait_for_machine(vm_id, "running"))["sleep"]
            assert (sleep["woke_why"], sleep["woke_how"]) == (why, "resumed"), use
            assert sleep["slept_why"] == "requested"
            assert sleep["memory_on_disk_bytes"] is None
        resumes = await audit_entries(world, "machine.resume")
        assert {it["reason"] for it in resumes} == {why for _, why in USES} - {"a login"}
        await hibernate(world, vm_id)
        assert (await world.controller.call("GET", "/api/vm/active-cli"))["vmId"] == vm_id
        await _is_revoked(world)
        sleep = (await world.wait_for_machine(vm_id, "running"))["sleep"]
        assert sleep["woke_why"] == "removal of a login"


async def _is_revoked(world: World) -> None:
    """Revoke all logins, which resumes the machine because its disk is in use."""
    for listed in await world.controller.call("GET", "/api/credentials"):
        await world.controller.call("POST", f"/api/credentials/{listed['credentialId']}/revoke")
    async with asyncio.timeout(LIMIT_S):
        while await world.controller.call("GET", "/api/credentials"):
            await asyncio.sleep(0.05)
    assert not list(world.agent.state_dir.rglob("simulated-root/root/.codex/auth.json"))


# -- machines that stay running --------------------------------------------------------------------


async def _refused(world: World, vm_id: str, verb: str) -> tuple[int, str]:
    async with world.controller.client() as client:
        answer = await client.post(f"/api/vm/{vm_id}/{verb}")
    return answer.status_code, answer.json()["code"]


async def _waits_for_permission(chat: ChatClient) -> int:
    number = await chat.send("write a.txt: b")
    await chat.wait_for("permission", number)
    return number


async def test_only_an_unused_machine_is_hibernated() -> None:
    async with open_world({"login_end": "never"}) as world:
        await world.controller.start()
        session_id = await world.controller.connect("codex")
        session = await world.controller.wait_for_session(session_id, "waiting_for_person")
        [vm_id] = [it for it, kind in (await world.rows()).items() if kind == "cli"]
        assert await _refused(world, vm_id, "hibernate") == (409, "machine-busy")
        path = f"/api/auth/session/{session_id}/input"
        await world.controller.call("POST", path, {"callbackUrl": _callback_of(session)})
        assert (await world.controller.wait_for_session(session_id))["status"] == "completed"

        chat = await create_chat(world.controller)
        number = await _waits_for_permission(chat)
        assert await _refused(world, vm_id, "hibernate") == (409, "machine-busy")
        await world.controller.call("POST", f"{chat.path}/stop")
        await chat.wait_for("turn_ended", number)
        await hibernate(world, vm_id)
        assert (await world.controller.call("POST", f"/api/vm/{vm_id}/hibernate"))["status"] == (
            "hibernated"
        )
        await world.controller.call("POST", f"/api/vm/{vm_id}/stop")
        view = await world.wait_for_machine(vm_id, "stopped")
        assert view["sleep"]["memory_on_disk_bytes"] is None
        assert await _refused(world, vm_id, "hibernate") == (409, "machine-busy")
        await world.controller.call("POST", f"/api/vm/{vm_id}/resume")
        assert (await world.wait_for_machine(vm_id, "running"))["sleep"]["woke_how"] is None


def _callback_of(session: dict[str, Any]) -> str:
    """The callback URL of a simulated login."""
    from urllib.parse import parse_qs, urlsplit

    asked = parse_qs(urlsplit(session["oauthUrl"]).query)
    return f"{asked['redirect_uri'][0]}?code=made-up&state={asked['state'][0]}"


async def test_idle_machine_hibernates_unless_a_cli_is_busy() -> None:
    idle = {"POLYDEV_HIBERNATE_IDLE_S": "2", "POLYDEV_HIBERNATE_CPU": "1000"}
    async with open_connected_world(**idle) as (world, vm_id):
        chat = await create_chat(world.controller)
        number = await _waits_for_permission(chat)
        made = await world.controller.call("POST", "/api/vm/create", {"vmType": "cli"})
        view = await world.wait_for_machine(made["vm_id"], "hibernated")
        assert view["sleep"]["slept_why"] == "not used for 2 seconds"
        assert (await world.states())[vm_id] == "running", "a CLI in it waits for its user"
        slept = await audit_entries(world, "machine.hibernate")
        [entry] = [it for it in slept if it["subject"] == made["vm_id"]]
        assert (entry["actor"], entry["via"]) == ("controller", "idle")
        assert entry["reason"] == "not used for 2 seconds"

        await world.controller.call("POST", f"{chat.path}/stop")
        await chat.wait_for("turn_ended", number)
        async with open_socket(world, vm_id, "terminal") as socket:  # a forgotten tab
            await world.wait_for_machine(vm_id, "hibernated")
            error = (await read_exec_end(socket)).error
            assert error is not None
            assert error.code == "machine-asleep"


async def test_machine_stays_hibernated_when_its_host_is_full() -> None:
    async with open_world(POLYDEV_CLI_MEMORY_MIB="1024") as world:
        await world.agent.kill()
        world.agent.env["POLYDEV_HOST_MEMORY_MIB"] = "4096"
        await world.agent.start()
        await world.controller.start()
        vm_id = await connect_cli(world.controller, "codex")
        await hibernate(world, vm_id)
        others = []
        for kind in ("browser", "cli", "cli"):
            made = await world.controller.call("POST", "/api/vm/create", {"vmType": kind})
            others.append(made["vm_id"])
            await world.wait_for_machine(made["vm_id"], "running")
        assert await _refused(world, vm_id, "resume") == (503, "no-capacity")
        chat = await create_chat(world.controller)
        async with world.controller.client() as client:
            answer = await client.get(f"/api/vm/{others[1]}")
            assert answer.json()["status"] == "running"
        for other in others[1:]:  # otherwise the chat would use the user's other CLI machines
            await world.destroy(other)
        made = await world.controller.call("POST", "/api/vm/create", {"vmType": "browser"})
        await world.wait_for_machine(made["vm_id"], "running")
        events = await chat.run_turn("hello")
        assert events[-1]["reason"] == "failed"
        assert events[-1]["error"]["code"] == "no-capacity"
        assert (await world.states())[vm_id] == "hibernated"
        await world.destroy(made["vm_id"])
        assert joined_text(await chat.run_turn("hello")) == "You said: hello"


# -- the commands ----------------------------------------------------------------------------------


async def _run_command(world: World, *arguments: str) -> tuple[str, str]:
    """Run a command; return its standard output and error."""
    environment = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
        "POLYDEV_URL": f"http://127.0.0.1:{world.controller.port}",
        "POLYDEV_ADMIN_TOKEN": TOKEN,
    }
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-P", "-m", "polydev.cli", *arguments),
        env=environment,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await asyncio.wait_for(process.communicate(), LIMIT_S)
    assert process.returncode == 0, f"{arguments}: {err.decode()}"
    return out.decode(), err.decode()


async def _by_commands(world: World, vm_id: str) -> None:
    out, _ = await _run_command(world, "machine", "hibernate", "cli", "--json")
    assert json.loads(out)["status"] == "hibernated"
    shown, _ = await _run_command(world, "machine", "show", "cli")
    assert "hibernated" in shown
    assert "requested; its memory takes" in shown
    _, err = await _run_command(world, "machine", "exec", "cli", "--", "codex", "login", "status")
    assert f"Resuming {vm_id}" in err
    await hibernate(world, vm_id)
    out, _ = await _run_command(world, "machine", "resume", "cli")
    assert "It resumed with its memory" in out
    assert "it resumed with its memory" in (await _run_command(world, "machine", "show", "cli"))[0]


# -- failures ----------------------------------------------------------------------------------


async def _is_damaged(world: World, vm_id: str) -> None:
    """Damaged memory is not used, and the reason is reported."""
    await hibernate(world, vm_id)
    [memory] = [it for it in world.agent.state_dir.rglob("memory*") if it.is_file()]
    content = memory.read_bytes()
    memory.write_bytes(content[: len(content) // 2])
    events = await (await create_chat(world.controller)).run_turn("hello")
    assert joined_text(events) == "You said: hello"
    sleep = (await world.wait_for_machine(vm_id, "running"))["sleep"]
    assert (sleep["woke_how"], sleep["woke_why"]) == ("booted", CHAT)
    assert sleep["boot_reason"]


async def _dies(world: World, vm_id: str) -> None:
    """A restarted host agent resumes a hibernated machine."""
    await hibernate(world, vm_id)
    await world.agent.kill()
    await world.agent.start()
    await _by_files(world, vm_id)
    sleep = (await world.wait_for_machine(vm_id, "running"))["sleep"]
    assert (sleep["woke_how"], sleep["boot_reason"]) == ("resumed", "")


async def _differs(world: World, vm_id: str) -> None:
    """The row follows the host's state of a machine."""
    for operation, status in (
        (HibernateMachine(vm_id=vm_id), "hibernated"),
        (ResumeMachine(vm_id=vm_id), "running"),
    ):
        async with world.agent.host() as host:
            await host.run(f"behind-its-back-{status}", operation, 30)
        view = await world.wait_for_machine(vm_id, status)
    assert view["sleep"]["woke_how"] == "resumed"
    assert len(await audit_entries(world, "machine.hibernated")) == 1
    doctor = await world.controller.call("GET", "/api/doctor")
    assert [it for it in doctor["checks"] if it["name"] == "machines" and not it["ok"]] == []


async def test_hibernated_machine_is_usable_after_any_failure() -> None:
    async with open_connected_world(POLYDEV_RECONCILE_PERIOD_S="0.5") as (world, vm_id):
        await _by_commands(world, vm_id)
        await _is_damaged(world, vm_id)
        await _differs(world, vm_id)
        await _dies(world, vm_id)
        await world.assert_clean(vm_id)
