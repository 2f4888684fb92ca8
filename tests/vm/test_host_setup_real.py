"""Test `polydev host setup` under a running systemd."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from setup_world import states, tree
from systemd_world import CHECKOUT, SystemdWorld, running_systemd

IN_CHECKOUT = CHECKOUT / "bin" / "polydev"
INSTALLED = "/usr/local/bin/polydev"
AGENTS_CAPABILITIES = (0, 1, 3, 5, 6, 7, 8, 12, 18, 19, 21, 24, 27)
"""Numbers of <linux/capability.h>, see capabilities(7): chown, dac_override, fowner, kill, setgid,
setuid, setpcap, net_admin, sys_chroot, sys_ptrace, sys_admin, sys_resource, mknod."""

UNITS = ("polydev-machines", "polydev-hostd", "polydev-controller")


@pytest.fixture
def world(tmp_path: Path) -> Iterator[SystemdWorld]:
    with running_systemd(tmp_path) as it:
        yield it


def json_output(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    assert done.stdout, done.stderr
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def host_files(world: SystemdWorld) -> dict[str, tuple[object, ...]]:
    """Return the files that host setup may change."""
    found = {}
    for folder in ("etc", "usr/local/bin", "usr/local/lib"):
        files = tree(world.root / folder)
        found |= {
            f"{folder}/{name}": file for name, file in files.items() if not name.endswith("-")
        }
    found.pop("etc/.pwd.lock", None)
    return found


def status_of(world: SystemdWorld, unit: str) -> dict[str, str]:
    """Return the proc status of a unit's main process."""
    pid = world.shown(unit, "MainPID")["MainPID"]
    lines = (world.root / "proc" / pid / "status").read_text().splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def assert_least_privilege(world: SystemdWorld) -> None:
    """Check the privileges of decision 0045 in proc."""
    controller, agent = status_of(world, UNITS[2]), status_of(world, UNITS[1])
    assert controller["Uid"].split()[0] != "0"
    assert int(controller["CapBnd"], 16) == 0
    assert (controller["NoNewPrivs"], controller["Seccomp"]) == ("1", "2")
    assert int(agent["CapBnd"], 16) & ~sum(1 << bit for bit in AGENTS_CAPABILITIES) == 0
    assert (agent["NoNewPrivs"], agent["Seccomp"]) == ("1", "2")
    keeper = world.root / "sys/fs/cgroup/polydev.slice/polydev-machines.service/keeper"
    assert keeper.is_dir()


def test_host_setup_runs_and_is_reverted(world: SystemdWorld) -> None:
    before = host_files(world)
    done = world.run(IN_CHECKOUT, "host", "setup", "--json", POLYDEV_DRIVER="simulated")
    assert (done.returncode, json_output(done)["ok"]) == (0, True), done
    assert states(json_output(done))["services"] == "changed"
    for unit in UNITS:
        assert world.shown(unit, "ActiveState", "NRestarts") == {
            "ActiveState": "active",
            "NRestarts": "0",
        }, world.run("journalctl", "--no-pager", "-u", unit).stdout

    assert_least_privilege(world)

    # The installed command reports a healthy host.
    done = world.run(INSTALLED, "host", "setup", "--check", "--json")
    assert (done.returncode, json_output(done)["ok"]) == (0, True), done
    found = json_output(world.run(INSTALLED, "doctor", "--json"))["checks"]
    assert [it for it in found if it["ok"] is False] == []
    assert "systemd runs" in next(it["message"] for it in found if it["name"] == "polydev")

    # The next agent reuses the network namespace.
    namespace = world.root / "run/netns/polydev"
    is_held = namespace.stat().st_ino
    assert world.run("systemctl", "restart", UNITS[1]).returncode == 0
    assert namespace.stat().st_ino == is_held

    # A unit that runs with outdated settings is reported.
    assert world.run("systemctl", "stop", UNITS[2]).returncode == 0
    done = world.run(INSTALLED, "host", "setup", "--check", "--json")
    assert (done.returncode, states(json_output(done))["services"]) == (1, "missing")

    done = world.run(INSTALLED, "host", "setup", "--uninstall", "--purge", "--yes", "--json")
    assert (done.returncode, json_output(done)["kept"]) == (0, []), done
    assert host_files(world) == before
    assert not (world.root / "var/lib/polydev").exists()
    assert not (world.root / "run/netns/polydev").exists()
    assert world.run("systemctl", "list-units", "--all", "--no-legend", "polydev*").stdout == ""
    assert "polydev" not in world.run("nft", "list", "ruleset").stdout


def test_controller_start_failure_is_quoted(world: SystemdWorld) -> None:
    settings = {"POLYDEV_DRIVER": "simulated"}
    (world.root / "etc/polydev").mkdir()
    (world.root / "etc/polydev/controller.env").write_text("POLYDEV_AUDIT_DAYS=many\n")
    done = world.run(IN_CHECKOUT, "host", "setup", "--json", **settings)
    services = next(it for it in json_output(done)["items"] if it["name"] == "services")
    assert (done.returncode, services["state"]) == (1, "missing")
    assert "POLYDEV_AUDIT_DAYS ('many') is invalid" in services["message"]
