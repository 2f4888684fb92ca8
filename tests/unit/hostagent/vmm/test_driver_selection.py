"""Selection of the driver that runs a host's machines."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest

from polydev.hostagent.health import preflight
from polydev.hostagent.images import ImageStore
from polydev.hostagent.machines.provisioner import probe_files
from polydev.hostagent.settings import HostSettings
from polydev.hostagent.vmm import driver_selection
from polydev.hostagent.vmm.contract import Probe


class FakeDriver:
    """The part of a driver that the selection uses."""

    def __init__(self, name: str, *, usable: bool = True, pids: Sequence[int] = ()) -> None:
        self.name = name
        self.pids = pids
        self._probe = Probe(usable, "kvm" if usable else "none", f"{name}'s reason", "1.2.3")

    async def probe(self) -> Probe:
        return self._probe

    def find_orphans(self, folders: Sequence[Path]) -> Sequence[int]:
        return self.pids


async def selected(wanted: str, firecracker: FakeDriver, qemu: FakeDriver) -> tuple[str, Probe]:
    driver, probe = await driver_selection.select_real(wanted, firecracker, qemu)  # type: ignore[arg-type]
    return driver.name, probe


async def test_auto_selects_firecracker_if_a_guest_runs() -> None:
    name, probe = await selected("auto", FakeDriver("firecracker"), FakeDriver("qemu"))
    assert (name, probe.version) == ("firecracker", "1.2.3")


async def test_auto_falls_back_to_qemu_with_a_reason() -> None:
    name, probe = await selected(
        "auto", FakeDriver("firecracker", usable=False), FakeDriver("qemu")
    )
    assert name == "qemu"
    assert probe.reason == "qemu's reason; not Firecracker: firecracker's reason"


async def test_auto_keeps_the_driver_with_running_machines() -> None:
    name, probe = await selected("auto", FakeDriver("firecracker"), FakeDriver("qemu", pids=[1]))
    assert name == "qemu"
    assert "while its machines run" in probe.reason
    broken = FakeDriver("firecracker", usable=False, pids=[1])
    name, probe = await selected("auto", broken, FakeDriver("qemu"))
    assert (name, probe.usable) == ("firecracker", False)


@contextmanager
def running_process() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(["sleep", "60"]) as process:
        yield process
        process.kill()


@pytest.mark.parametrize("wanted", ["firecracker", "qemu"])
async def test_named_driver_ends_the_machines_of_another(wanted: str) -> None:
    with running_process() as ours, running_process() as another:
        drivers = {
            name: FakeDriver(name, pids=[(ours if name == wanted else another).pid])
            for name in ("firecracker", "qemu")
        }
        name, _ = await selected(wanted, drivers["firecracker"], drivers["qemu"])
        assert name == wanted
        assert another.wait(timeout=10) == -9
        assert ours.poll() is None


@pytest.mark.parametrize("driver", ["auto", "firecracker", "qemu"])
def test_host_needs_qemu_only_if_it_may_be_used(
    driver: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    monkeypatch.setattr(preflight.os, "geteuid", lambda: 0)
    monkeypatch.setattr(preflight.shutil, "which", lambda tool: asked.append(tool) or tool)
    preflight.require(driver)
    assert ("qemu-system-x86_64" in asked) == (driver != "firecracker")
    assert "debugfs" in asked


async def test_host_without_firecracker_reports_it(tmp_path: Path) -> None:
    settings = HostSettings(
        state_dir=tmp_path,
        images_dir=tmp_path,
        driver="firecracker",
        firecracker=tmp_path / "firecracker",
    )
    selected = await driver_selection.select(settings, partial(probe_files, ImageStore(tmp_path)))
    assert selected.driver.name == "firecracker"
    assert not selected.probe.usable
    assert "`firecracker` was not found at" in selected.probe.reason
