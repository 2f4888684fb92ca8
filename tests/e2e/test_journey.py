"""Test the main journeys on real machines through the commands.

`polydev demo` logs Claude Code in, `polydev connect` logs Codex in while controller and host agent
are killed. test_page.py covers Gemini CLI. A login takes minutes when machines are
emulated, so each CLI logs in once and the tests inspect the result.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from e2e.installation import Installation
from polydev.shared.domain import LOGIN_STEPS, StepName
from polydev.shared.host_client import HostClient
from polydev.shared.providers import all_providers

pytestmark = [pytest.mark.vm, pytest.mark.clis, pytest.mark.timeout(1800)]

CLIS = {it.id: it for it in all_providers() if it.id in ("claude_code", "codex")}
CREDENTIALS = {name: it.credentials.path for name, it in CLIS.items()}
STATUS = {name: it.status_argv for name, it in CLIS.items()}
STEPS = (*LOGIN_STEPS, "browser gone", "status", "chat")


@pytest.fixture(scope="module")
def cli(report: dict[str, Any]) -> str:
    """Return the id of the CLI machine."""
    vm_id: str = report["machines"]["claude_code"]
    return vm_id


@pytest.fixture(scope="module")
def codex(installation: Installation, cli: str) -> subprocess.CompletedProcess[str]:
    """Log Codex in while controller and host agent are killed.

    Both are killed while the machines are created, and again later.
    """
    for step in (StepName.CREATE_MACHINES.label, StepName.START_LOGIN.label):
        process = _connect_until(installation, step)
        for module in ("polydev.controller", "polydev.hostagent"):
            os.kill(installation.process(module), signal.SIGKILL)
        process.communicate(timeout=600)
    again = installation.run("connect", "codex", limit_s=600)
    for _ in range(60):
        if again.returncode == 0 or "answer" not in again.stderr:
            break
        again = installation.run("connect", "codex", limit_s=600)
    return again


def _connect_until(installation: Installation, step: str) -> subprocess.Popen[str]:
    """Start or join a login; return its command once a step is done."""
    for _ in range(60):
        process = installation.start("connect", "codex", stderr=subprocess.STDOUT)
        assert process.stdout is not None
        output = []
        for line in process.stdout:
            output.append(line)
            if "✓" in line and step in line:
                return process
        process.communicate(timeout=60)
        assert "answer" in output[-1], output  # the controller is not up yet
    raise AssertionError(output)


def test_journey_ends_with_an_answer(report: dict[str, Any]) -> None:
    assert report["ok"] is True
    assert report["answers"]["claude_code"].strip()
    taken = [step["step"] for step in report["steps"] if step["provider"] == "claude_code"]
    assert taken == list(STEPS)
    assert all(step["seconds"] >= 0 for step in report["steps"])


def test_one_cli_machine_and_no_browser_machine_remain(
    installation: Installation, cli: str
) -> None:
    machines = installation.json("machine", "list")
    assert [(machine["vm_id"], machine["vm_type"]) for machine in machines] == [(cli, "cli")]


def test_cancelled_login_leaves_nothing(installation: Installation, cli: str) -> None:
    process = installation.start("connect", "codex", stderr=subprocess.STDOUT)
    assert process.stdout is not None
    for line in process.stdout:
        if StepName.CREATE_MACHINES.label in line:
            break
    process.send_signal(signal.SIGINT)
    rest, _ = process.communicate(timeout=300)
    assert process.returncode == 130, rest
    assert [machine["vm_id"] for machine in installation.json("machine", "list")] == [cli]
    checks = json.loads(installation.run("doctor", "--json").stdout)["checks"]
    assert [check for check in checks if not check["ok"]] == []


def test_killed_host_agent_adopts_its_machines(installation: Installation, cli: str) -> None:
    os.kill(installation.process("polydev.hostagent"), signal.SIGKILL)
    for _ in range(60):
        ended = installation.run("machine", "exec", cli, "--", *STATUS["claude_code"])
        if ended.returncode == 0:
            return
    pytest.fail(ended.stderr)


async def test_login_outlives_controller_and_host_agent(
    installation: Installation, cli: str, codex: subprocess.CompletedProcess[str]
) -> None:
    assert codex.returncode == 0, f"{codex.stdout}\n{codex.stderr}"
    async with HostClient(installation.state_dir / "sockets" / "hostd.sock") as host:
        found = await host.inventory()
    assert found.machines == found.folders == list(found.processes) == [cli]
    assert list(found.addresses) == [cli]
    assert len(found.taps) == len(set(found.firewall)) == 1
    assert [machine["vm_id"] for machine in installation.json("machine", "list")] == [cli]


@pytest.mark.usefixtures("codex")
@pytest.mark.parametrize("provider", STATUS)
def test_cli_reports_its_login(installation: Installation, cli: str, provider: str) -> None:
    ended = installation.run("machine", "exec", cli, "--", *STATUS[provider])
    assert ended.returncode == 0
    assert re.search(r"logged.?in", ended.stdout + ended.stderr, re.IGNORECASE)


@pytest.mark.usefixtures("codex")
@pytest.mark.parametrize("provider", CREDENTIALS)
def test_only_root_may_read_credentials(
    installation: Installation, cli: str, provider: str
) -> None:
    path = CREDENTIALS[provider]
    mode = installation.ok("machine", "exec", cli, "--", "stat", "-c", "%U:%G %a", path)
    assert mode.strip() == "root:root 600"


@pytest.mark.usefixtures("codex")
def test_chat_continues_from_the_command(installation: Installation) -> None:
    assert installation.json("chat", "codex", "Say hello once more.")["text"].strip()


@pytest.mark.usefixtures("codex")
def test_tokens_are_only_in_the_cli_machine(installation: Installation, cli: str) -> None:
    tokens: set[str] = set()
    for path in CREDENTIALS.values():
        text = installation.ok("machine", "exec", cli, "--", "cat", path)
        tokens |= tokens_in(json.loads(text))
    assert len(tokens) == 5, "Codex has three, Claude Code two"
    needles = [token.encode() for token in tokens]
    for argv in installation.processes().values():
        assert not any(needle.decode() in argv for needle in needles)
    for path, content in searchable_files(installation.state_dir):
        assert not any(needle in content for needle in needles), path


def tokens_in(value: Any, name: str = "") -> set[str]:
    """Return the values of all tokens in a credentials file."""
    if isinstance(value, dict):
        return set().union(*(tokens_in(inner, key) for key, inner in value.items()))
    is_token = isinstance(value, str) and name.lower().endswith("token") and value
    return {value} if is_token else set()


def searchable_files(state_dir: Path) -> Iterator[tuple[Path, bytes]]:
    """Yield all files and their contents except CLI machines' disks.

    The disks hold credentials by design. Files and folders may vanish meanwhile.
    """
    for parent, _, names in os.walk(state_dir):
        for path in (Path(parent, name) for name in names):
            is_disk = path.name.startswith("disk") or (
                path.is_relative_to(state_dir / "machines") and path.suffix in {".img", ".raw"}
            )
            if is_disk or path.is_relative_to(state_dir / "standin") or path.is_symlink():
                continue
            with suppress(FileNotFoundError):
                if path.is_file():
                    yield path, path.read_bytes()
