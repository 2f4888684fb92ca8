"""A controller that cannot start prints one clear line and changes nothing."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import stat
import sys
from pathlib import Path

import pytest
from controller_process import TOKEN, ControllerProcess
from postgres import Cluster


async def _refused(state_dir: Path, **env: str) -> str:
    """Start a controller that must fail; return its error line."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "polydev.controller"),
        env={**ControllerProcess(state_dir).env, **env},
        cwd=state_dir.parent,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode == 1
    assert out == b""
    [line] = err.decode().splitlines()
    return line


@pytest.fixture
async def controller(tmp_path: Path) -> ControllerProcess:
    """A controller that starts as in production."""
    it = ControllerProcess(tmp_path / "state")
    it.is_as_shipped = True
    return it


async def test_port_in_use_is_reported(tmp_path: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = str(other.getsockname()[1])
        line = await _refused(tmp_path / "state", PORT=port)
    assert line == (
        f"polydev: Another program listens on port {port} of 127.0.0.1. "
        "Stop that program, or set PORT to another port"
    )
    assert not (tmp_path / "state").exists()


@pytest.mark.parametrize(
    ("env", "named"),
    [
        ({"ENCRYPTION_KEY": ""}, "ENCRYPTION_KEY"),
        ({"PORT": "many"}, "PORT"),
        ({"POLYDEV_LISTEN": "300.0.0.1"}, "POLYDEV_LISTEN"),
        ({"POLYDEV_ADMIN_TOKEN": "short"}, "POLYDEV_ADMIN_TOKEN"),
        ({"DATABASE_URL": "postgresql://me:hunter2@db.test/x"}, "DATABASE_URL"),
        ({"DATABASE_URL": "nonsense"}, "DATABASE_URL"),
        ({"DATABASE_URL": "sqlite:///beside-whoever-starts-it.db"}, "DATABASE_URL"),
        ({"POLYDEV_STATE_DIR": "/proc/nothing"}, "POLYDEV_STATE_DIR"),
    ],
)
async def test_invalid_setting_is_named(tmp_path: Path, env: dict[str, str], named: str) -> None:
    line = await _refused(tmp_path / "state", **env)
    assert named in line
    assert "hunter2" not in line
    assert {it.name for it in tmp_path.iterdir()} <= {"state"}, (
        "it left files in its working directory"
    )


async def test_wrong_encryption_key_is_reported(controller: ControllerProcess) -> None:
    await controller.start()
    await controller.call("GET", "/health")
    assert await controller.end() == 0
    line = await _refused(controller.state_dir, ENCRYPTION_KEY="another")
    assert "ENCRYPTION_KEY does not open this database" in line


async def test_second_controller_in_the_same_folder_is_refused(
    controller: ControllerProcess,
) -> None:
    await controller.start()
    try:
        await controller.call("GET", "/health")
        line = await _refused(controller.state_dir)
        assert "Another controller is running in" in line
    finally:
        await controller.kill()


async def test_second_controller_on_the_same_sqlite_database_is_refused(
    controller: ControllerProcess, tmp_path: Path
) -> None:
    url = f"sqlite:///{tmp_path / 'data' / 'one.db'}"
    controller.env["DATABASE_URL"] = url
    await controller.start()
    try:
        await controller.call("GET", "/health")
        line = await _refused(tmp_path / "other", DATABASE_URL=url)
        assert "Another controller is running in" in line
    finally:
        await controller.kill()


async def test_empty_database_is_migrated(controller: ControllerProcess, postgres: Cluster) -> None:
    controller.env["DATABASE_URL"] = postgres.empty_database()
    await controller.start()
    try:
        assert await controller.call("GET", "/api/vm/list") == []
    finally:
        await controller.kill()
    postgres.drop(controller.env["DATABASE_URL"])


async def test_state_files_are_private(controller: ControllerProcess) -> None:
    del controller.env["POLYDEV_ADMIN_TOKEN"]
    await controller.start()
    await controller.client().get("/health")
    folder = controller.state_dir / "controller"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    files = {path.name for path in folder.iterdir()}
    assert {"admin-token", "journal.db", "polydev.db"} <= files
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {0o600}
    token = (folder / "admin-token").read_text().strip()
    assert len(token) > 32
    await controller.end()
    await controller.start()
    assert (folder / "admin-token").read_text().strip() == token
    headers = {"authorization": f"Bearer {token}"}
    answer = await controller.client().get("/api/vm/list", headers=headers)
    assert answer.json() == []
    headers = {"authorization": f"Bearer {TOKEN}"}
    answer = await controller.client().get("/api/vm/list", headers=headers)
    assert answer.status_code == 401
    await controller.kill()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_signal_ends_it_during_a_long_poll(
    controller: ControllerProcess, number: signal.Signals
) -> None:
    await controller.start()
    await controller.call("GET", "/health")
    session_id = await controller.connect("codex")
    view = await controller.session(session_id)
    path = f"/api/auth/session/{session_id}/events?{view['version']}"
    async with controller.client() as client, client.stream("GET", path) as answer:
        assert answer.status_code == 200
        os.kill(controller.pid, number)
        assert await controller.ended() == 0
