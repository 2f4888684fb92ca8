"""The drivers' entry points, of a checkout and of an installed distribution."""

from __future__ import annotations

from pathlib import Path

import pytest

from polydev.hostagent.settings import HostSettings
from polydev.hostagent.system import entry_points
from polydev.hostagent.system.entry_points import DRIVERS, find
from polydev.hostagent.vmm.driver_selection import capabilities_of
from polydev.shared.errors import BadSettings
from polydev.shared.settings.base import read

PYPROJECT = """
[project]
name = "{name}"

[project.entry-points."polydev.drivers"]
toy = "toys.driver:ToyDriver"
"""


def test_checkout_declares_its_drivers() -> None:
    assert list(find(DRIVERS)) == ["firecracker", "qemu", "simulated"]
    for name, entry in find(DRIVERS).items():
        assert entry.load().name.__class__ in {str, property}, name


def test_pyproject_beside_the_source_is_read(tmp_path: Path) -> None:
    pyproject = tmp_path / "pyproject.toml"
    pyproject.write_text(PYPROJECT.format(name="polydev"))
    [entry] = find(DRIVERS, pyproject).values()
    assert (entry.name, entry.value, entry.group) == ("toy", "toys.driver:ToyDriver", DRIVERS)


@pytest.mark.parametrize("content", [None, PYPROJECT.format(name="another")])
def test_installed_distributions_are_asked_without_a_checkout(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str | None
) -> None:
    pyproject = tmp_path / "pyproject.toml"
    if content is not None:
        pyproject.write_text(content)
    [installed] = find(DRIVERS, _written(tmp_path / "installed.toml")).values()
    monkeypatch.setattr(entry_points, "entry_points", lambda group: [installed])
    assert find(DRIVERS, pyproject) == {"toy": installed}


def test_settings_accept_only_declared_drivers(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("auto", *find(DRIVERS)):
        assert HostSettings(driver=name).driver == name
    monkeypatch.setenv("POLYDEV_DRIVER", "xen")
    with pytest.raises(BadSettings, match="one of auto, firecracker, qemu, simulated"):
        read(HostSettings)


def test_drivers_state_their_capabilities() -> None:
    simulated, qemu = capabilities_of("simulated"), capabilities_of("qemu")
    assert not simulated.needs_images
    assert not simulated.host_memory
    assert simulated.shares_process
    assert qemu.needs_images
    assert qemu.host_memory
    assert not qemu.shares_process
    assert not capabilities_of("firecracker").channel_nic
    assert capabilities_of("auto").programs == qemu.programs


def _written(path: Path) -> Path:
    path.write_text(PYPROJECT.format(name="polydev"))
    return path
