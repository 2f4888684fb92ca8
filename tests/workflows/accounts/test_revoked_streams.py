"""Open streams end at sign-out and when their token is revoked."""

from __future__ import annotations

import asyncio

from api_users import create_user
from controller_world import open_world
from websockets.asyncio.client import connect

from polydev.shared.host_protocol import ExecEnd, ExecRequest


async def test_program_ends_when_its_token_is_revoked() -> None:
    async with open_world() as world:
        await world.controller.start()
        ann = await create_user(world.controller, "ann")
        token_id, token = await ann.token("machines")
        async with ann.by_cookie() as client:
            machine = (await client.post("/api/vm/create", json={"vmType": "cli"})).json()
            vm_id = machine["vm_id"]
            while machine["status"] == "creating":
                path = f"/api/vm/{vm_id}?after={machine['version']}&wait=20"
                machine = (await client.get(path)).json()
            url = f"ws://127.0.0.1:{world.controller.port}/api/vm/{vm_id}/exec"
            headers = {"Authorization": f"Bearer {token}"}
            async with asyncio.timeout(60), connect(url, additional_headers=headers) as socket:
                await socket.send(ExecRequest(argv=["cat"]).model_dump_json())
                await socket.send(b"still there")
                assert (await socket.recv())[1:] == b"still there"
                assert (await client.delete(f"/api/account/tokens/{token_id}")).status_code == 204
                end = ExecEnd.model_validate_json(await socket.recv())
        assert end.error is not None
        assert end.error.code == "not-signed-in"


async def test_session_events_end_when_their_token_is_revoked() -> None:
    async with open_world({"login_end": "never"}) as world:
        await world.controller.start()
        ann = await create_user(world.controller, "ann")
        token_id, _ = await ann.token("read")
        reader = await ann.by_token("read")
        async with ann.by_cookie() as client, reader:
            tokens = (await client.get("/api/account/tokens")).json()
            [readers] = [it["tokenId"] for it in tokens if it["tokenId"] != token_id]
            started = (await client.post("/api/auth/start", json={"provider": "codex"})).json()
            path = f"/api/auth/session/{started['sessionId']}"
            session = (await client.get(path)).json()
            while session["step"] != "wait-for-person":
                session = (await client.get(f"{path}?after={session['version']}&wait=20")).json()
            heard = []
            async with asyncio.timeout(60), reader.stream("GET", f"{path}/events") as stream:
                async for line in stream.aiter_lines():
                    heard.append(line)
                    if line.startswith("data: "):
                        revoked = await client.delete(f"/api/account/tokens/{readers}")
                        assert revoked.status_code == 204
                        assert (await client.post(f"{path}/cancel")).status_code == 202
        assert "cancelled" not in "".join(heard)
        assert sum(line.startswith("data: ") for line in heard) == 1
