"""Test the commands against a running Polydev with simulated machines."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator

import pytest

from e2e.installation import Installation

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="`polydev up` needs root")


@pytest.fixture(scope="module")
def installation() -> Iterator[Installation]:
    installation = Installation(
        extra={
            "POLYDEV_DRIVER": "simulated",
            "POLYDEV_UPLINK": "none",
            "POLYDEV_DNS": "",
            "POLYDEV_WARM_START": "true",
            "POLYDEV_WARM_QUIET_S": "3600",
            "ENCRYPTION_KEY": "made up for this test",
        }
    )
    try:
        started = installation.json("up", "--detach")
        assert started["url"] == f"http://127.0.0.1:{installation.port}"
        yield installation
    finally:
        ended = installation.run("down", "--purge", "--yes")
        assert ended.returncode == 0, ended.stderr
        assert installation.leftovers() == {}


def test_controller_is_unprivileged_and_cannot_gain_root(installation: Installation) -> None:
    status = status_of(installation.process("polydev.controller"))
    assert status["Uid"].split()[0] != "0"
    assert status["NoNewPrivs"] == "1"
    assert int(status["CapEff"], 16) == 0
    assert int(status["CapInh"], 16) == 0


def test_host_agent_has_no_controller_secrets(installation: Installation) -> None:
    pid = installation.process("polydev.hostagent")
    assert status_of(pid)["Uid"].split()[0] == "0"
    with open(f"/proc/{pid}/environ", "rb") as file:  # noqa: PTH123
        names = {entry.split(b"=")[0] for entry in file.read().split(b"\0")}
    assert not names & {b"ENCRYPTION_KEY", b"DATABASE_URL", b"POLYDEV_ADMIN_TOKEN"}


def test_second_up_reports_running_instance(installation: Installation) -> None:
    ended = installation.run("up")
    assert ended.returncode == 1
    assert "already runs" in ended.stderr
    assert len(ended.stderr.splitlines()) == 1


def test_connect_shows_its_steps_and_ends_with_the_cli_machine(installation: Installation) -> None:
    ended = installation.run("connect", "codex")
    assert ended.returncode == 0, ended.stderr
    assert "Deleting the browser machine" in ended.stdout
    assert "codex is logged in" in ended.stdout
    machines = installation.json("machine", "list")
    assert [machine["vm_type"] for machine in machines] == ["cli"]


def test_warm_browser_machine_connects_like_any_other(installation: Installation) -> None:
    assert installation.json("image", "warm")["state"] == "ready"
    assert installation.json("image", "warm")["state"] == "ready", "the template exists"
    checks = {
        check["name"]: check
        for check in json.loads(installation.run("doctor", "--json").stdout)["checks"]
    }
    assert checks["warm start"]["ok"]
    installation.ok("connect", "codex")
    log = (installation.state_dir / "logs" / "hostd.log").read_text()
    assert re.search(r": (cloned|taken from standby) in ", log)


def test_connect_with_json_prints_one_object(installation: Installation) -> None:
    ended = installation.run("connect", "claude_code", "--json")
    session = json.loads(ended.stdout)
    assert session["ok"] is True
    assert session["status"] == "completed"
    assert all(step["outcome"] == "done" for step in session["steps"])


def test_unknown_provider_is_one_line(installation: Installation) -> None:
    ended = installation.run("connect", "hal")
    assert ended.returncode == 1
    assert len(ended.stderr.splitlines()) == 1
    assert "hal" in ended.stderr


def test_chat_streams_and_reads_standard_input(installation: Installation) -> None:
    installation.ok("connect", "codex")
    assert installation.ok("chat", "codex", "Hello").strip()
    assert installation.ok("chat", "codex", "-", text_in="Hello again").strip()
    assert installation.json("chat", "codex", "Hello")["text"]


def test_exec_passes_streams_and_exit_codes(installation: Installation) -> None:
    installation.ok("connect", "codex")
    assert (
        installation.ok("machine", "exec", "cli", "--", "cat", text_in="through\n") == "through\n"
    )
    ended = installation.run("machine", "exec", "cli", "--json", "--", "no-such-program")
    assert json.loads(ended.stdout)["exit_code"] == ended.returncode == 127


def test_machine_is_created_shown_and_destroyed(installation: Installation) -> None:
    created = installation.json("machine", "create", "browser")
    assert created["status"] == "running"
    assert installation.json("machine", "show", created["vm_id"][:12])["vm_id"] == created["vm_id"]
    assert installation.json("machine", "console", created["vm_id"])["console"]
    assert installation.run("machine", "destroy", created["vm_id"]).returncode == 1, (
        "destroy asks for confirmation"
    )
    gone = installation.json("machine", "destroy", created["vm_id"], "--yes")
    assert gone["status"] == "destroyed"
    ended = installation.run("machine", "show", created["vm_id"])
    assert ended.returncode == 1
    assert "no machine" in ended.stderr


def test_dead_processes_are_restarted(installation: Installation) -> None:
    before = installation.process("polydev.controller")
    os.kill(before, signal.SIGKILL)
    deadline = time.monotonic() + 180
    while installation.run("machine", "list").returncode != 0:
        assert time.monotonic() < deadline
    assert installation.process("polydev.controller") != before
    assert "killed by SIGKILL" in (installation.state_dir / "logs" / "up.log").read_text()


def test_doctor_has_no_findings(installation: Installation) -> None:
    answer = json.loads(installation.run("doctor", "--json").stdout)
    wrong = [c for c in answer["checks"] if not c["ok"] and c["name"] != "images"]
    assert wrong == []


def test_up_in_the_foreground_ends_by_ctrl_c() -> None:
    installation = Installation(
        extra={
            "POLYDEV_DRIVER": "simulated",
            "POLYDEV_UPLINK": "none",
            "POLYDEV_DNS": "",
            "ENCRYPTION_KEY": "made up for this test",
        }
    )
    process = installation.start("up", stderr=subprocess.STDOUT)
    try:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("hostd") and "ready" in line:
                break
        process.send_signal(signal.SIGINT)
        rest, _ = process.communicate(timeout=180)
        assert "has stopped" in rest
        assert process.returncode in {0, 130}
    finally:
        process.kill()
        installation.run("down", "--purge", "--yes")
    assert installation.leftovers() == {}


def status_of(pid: int) -> dict[str, str]:
    with open(f"/proc/{pid}/status") as file:  # noqa: PTH123
        return {name: value.strip() for name, _, value in (row.partition(":") for row in file)}
