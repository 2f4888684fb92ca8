"""`polydev down` kills every process in the VM namespace."""

from __future__ import annotations

import subprocess
import uuid
from collections.abc import Iterator

import pytest

from polydev.cli.supervisor import shutdown
from polydev.shared.errors import Failed


@pytest.fixture
def netns() -> Iterator[str]:
    name = f"pdt-{uuid.uuid4().hex[:8]}"
    subprocess.run(["ip", "netns", "add", name], check=True)
    yield name
    subprocess.run(["ip", "netns", "delete", name], check=True)


def sleeper(netns: str) -> subprocess.Popen[bytes]:
    """Start a process in the namespace."""
    command = ["ip", "netns", "exec", netns, "sh", "-c", "echo; exec sleep 600"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"\n"
    return process


async def test_new_processes_are_killed_too(netns: str, monkeypatch: pytest.MonkeyPatch) -> None:
    living = [sleeper(netns)]
    listed = shutdown._pids_in

    def list_then_start_one(netns: str) -> list[int]:
        pids = listed(netns)
        if len(living) == 1:
            living.append(sleeper(netns))
        return pids

    monkeypatch.setattr(shutdown, "_pids_in", list_then_start_one)
    await shutdown.kill_in_namespace(netns)
    assert listed(netns) == []
    assert [it.wait(10) for it in living] == [-9, -9]


async def test_endless_new_processes_are_an_error(
    netns: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    living: list[subprocess.Popen[bytes]] = []
    listed = shutdown._pids_in

    def list_with_one_more(netns: str) -> list[int]:
        living.append(sleeper(netns))
        return listed(netns)

    monkeypatch.setattr(shutdown, "_pids_in", list_with_one_more)
    monkeypatch.setattr(shutdown, "_KILL_ROUNDS", 3)
    with pytest.raises(Failed, match="do not exit"):
        await shutdown.kill_in_namespace(netns)
    assert [it.wait(10) for it in living] == [-9] * 3


async def test_missing_namespace_has_no_processes() -> None:
    await shutdown.kill_in_namespace("pdt-never-made")


async def test_unkillable_process_is_named(netns: str, monkeypatch: pytest.MonkeyPatch) -> None:
    process = sleeper(netns)
    monkeypatch.setattr(shutdown, "KILL_LIMIT_S", 0.2)
    monkeypatch.setattr(shutdown.signal, "pidfd_send_signal", lambda *_: None)
    with pytest.raises(Failed, match=rf"\[{process.pid}\] .* do not exit") as refused:
        await shutdown.kill_in_namespace(netns)
    assert f"ip netns pids {netns}" in refused.value.hint
    process.kill()
    process.wait()
