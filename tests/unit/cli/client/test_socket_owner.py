"""Only the controller's user gets the administrator's token."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from polydev.cli.client.api_client import open_client
from polydev.cli.client.socket_owner import Owner, Owners, describe_program, listeners
from polydev.cli.commands.instance.up import answers
from polydev.shared.errors import ControllerUnreachable, PortTaken

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="has programs run as other users")

TOKEN = "a-token-that-nobody-else-may-see"
OTHER_USER, ANOTHER = 65534, 1_900_900_001

SQUATTER = """
import socket, sys, time
listener = socket.create_server((sys.argv[1], 0), family=int(sys.argv[2]), dualstack_ipv6=False)
print(listener.getsockname()[1], flush=True)
time.sleep(float(sys.argv[3]))
connection, _ = listener.accept()
body = b'{"status": "ok"}'
try:
    received = connection.recv(65536)
    connection.sendall(b"HTTP/1.1 200 OK\\r\\nContent-Length: %d\\r\\n\\r\\n%s" % (len(body), body))
except OSError:
    received = b""
print(received.decode().partition("\\r")[0], flush=True)
time.sleep(30)
"""


@contextmanager
def run_squatter(
    uid: int, *, accepts_after_s: float = 0, at: str = "127.0.0.1"
) -> Iterator[Squatter]:
    """Run a program of another user that answers on a port."""
    family = socket.AF_INET6 if ":" in at else socket.AF_INET
    process = subprocess.Popen(
        [
            *("setpriv", f"--reuid={uid}", f"--regid={uid}", "--clear-groups", "--"),
            *("/usr/bin/python3", "-c", SQUATTER),
            *(at, str(int(family)), str(accepts_after_s)),
        ],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        yield Squatter(process, int(process.stdout.readline()))
    finally:
        process.kill()
        process.wait()


class Squatter:
    def __init__(self, process: subprocess.Popen[str], port: int) -> None:
        self._process, self.port = process, port

    def received(self) -> str:
        """Bytes received until the connection ends, or for a second."""
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()


@pytest.fixture
def state_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """State folder whose controller runs as `nobody`."""
    (tmp_path / "controller").mkdir()
    os.chown(tmp_path / "controller", OTHER_USER, OTHER_USER)
    monkeypatch.setenv("POLYDEV_STATE_DIR", str(tmp_path))
    monkeypatch.setenv("POLYDEV_ADMIN_TOKEN", TOKEN)
    monkeypatch.delenv("POLYDEV_URL", raising=False)
    return tmp_path


@pytest.mark.parametrize("accepts_after_s", [0, 0.3], ids=["at once", "late"])
async def test_foreign_program_on_the_port_gets_nothing(
    state_dir: Path, monkeypatch: pytest.MonkeyPatch, accepts_after_s: float
) -> None:
    with run_squatter(ANOTHER, accepts_after_s=accepts_after_s) as stranger:
        monkeypatch.setenv("PORT", str(stranger.port))
        async with open_client() as there:
            with pytest.raises(PortTaken, match=f"Port {stranger.port} .*uid {ANOTHER}") as refused:
                await there.get("/api/vm/list")
        assert "polydev up" in refused.value.hint
        assert await asyncio.to_thread(stranger.received) == ""


async def test_foreign_program_gets_no_token_of_a_websocket(
    state_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with run_squatter(ANOTHER) as stranger:
        monkeypatch.setenv("PORT", str(stranger.port))
        async with open_client() as there:
            with pytest.raises(PortTaken, match=f"uid {ANOTHER}"):
                async with there.websocket("/api/vm/vm-x/exec"):
                    pass
        assert await asyncio.to_thread(stranger.received) == ""


async def test_unaccepted_connection_times_out(
    state_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel shows root as the owner until a process accepts the connection."""
    monkeypatch.setattr("polydev.cli.client.socket_owner.ACCEPT_LIMIT_S", 0.3)
    with run_squatter(ANOTHER, accepts_after_s=20) as stranger:
        monkeypatch.setenv("PORT", str(stranger.port))
        async with open_client() as there:
            with pytest.raises(ControllerUnreachable):
                await there.get("/api/vm/list")


@pytest.mark.parametrize("uid", [0, OTHER_USER], ids=["root", "the controller's user"])
async def test_controllers_user_gets_the_token(
    state_dir: Path, monkeypatch: pytest.MonkeyPatch, uid: int
) -> None:
    with run_squatter(uid) as mine:
        monkeypatch.setenv("PORT", str(mine.port))
        async with open_client() as there:
            assert await there.get("/api/vm/list") == {"status": "ok"}
        assert mine.received().startswith("GET /api/vm/list")


async def test_explicit_url_skips_the_check(
    state_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with run_squatter(ANOTHER) as other:
        monkeypatch.setenv("POLYDEV_URL", f"http://127.0.0.1:{other.port}")
        async with open_client() as there:
            assert await there.get("/api/vm/list") == {"status": "ok"}


async def test_up_ignores_a_foreign_program() -> None:
    owners = Owners(frozenset({OTHER_USER}))
    with run_squatter(ANOTHER) as stranger:
        assert not await answers(f"http://127.0.0.1:{stranger.port}", owners)
    with run_squatter(OTHER_USER) as mine:
        assert await answers(f"http://127.0.0.1:{mine.port}", owners)


@pytest.mark.parametrize("at", ["127.0.0.1", "0.0.0.0", "::1"])  # noqa: S104
def test_listeners_are_found_on_every_address(at: str) -> None:
    with run_squatter(ANOTHER, at=at) as stranger:
        [owner] = [it for it in listeners(stranger.port) if it.uid == ANOTHER]
        assert "python3, process" in describe_program(owner)


async def test_ipv6_socket_with_ipv4_is_found() -> None:
    with (
        socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True) as both,
        socket.create_connection(("127.0.0.1", both.getsockname()[1])) as client,
        both.accept()[0],
    ):
        await Owners(frozenset({0})).require(client)
        with pytest.raises(PortTaken, match="uid 0"):
            await Owners(frozenset({OTHER_USER})).require(client)


def test_the_owner_of_the_controllers_folder_is_its_user(tmp_path: Path) -> None:
    assert Owners.for_instance(tmp_path, "nobody").uids == {0, OTHER_USER}
    assert Owners.for_instance(tmp_path, "no-such-user").uids == {0}
    (tmp_path / "controller").mkdir()
    os.chown(tmp_path / "controller", ANOTHER, ANOTHER)
    assert Owners.for_instance(tmp_path, "nobody").uids == {0, ANOTHER}


def test_user_without_a_name_is_shown_by_uid() -> None:
    assert Owner(0, 1).name == "root (uid 0)"
    assert Owner(ANOTHER, 1).name == f"uid {ANOTHER}"
