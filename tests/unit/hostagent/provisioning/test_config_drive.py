"""The config drive: readable by the guest's tools, and free of certain secrets."""

from __future__ import annotations

import dataclasses
import shutil
import subprocess
import tarfile
from pathlib import Path

import pytest

from polydev.hostagent.provisioning.config_drive import (
    MachineConfig,
    config_drive,
    write_config_drive,
)
from polydev.hostagent.provisioning.ssh_keys import make_keys
from polydev.shared.domain import MachineKind
from polydev.shared.errors import Invalid

CONFIG = MachineConfig(
    vm_id="vm-00000000-0000-4000-8000-000000000001",
    kind=MachineKind.BROWSER,
    hostname="vm-00000000",
    address="192.168.100.5/24",
    mac="02:01:C0:A8:64:05",
    gateway="192.168.100.1",
    dns=("8.8.8.8", "1.1.1.1"),
    channel_mac="02:02:c0:a8:64:05",
    ready_nonce="0123abcd",
    clock_s=1_700_000_000,
    host_key=b"a private key\n",
    authorized_key="ssh-ed25519 AAAA made-up",
    environment={"HTTPS_PROXY": "http://192.168.100.1:3128", "A": 'it\'s "quoted" $(x) \\'},
    ca_pem=b"-----BEGIN CERTIFICATE-----\n",
    token="a-made-up-token",
)


def variables(folder: Path) -> dict[str, str]:
    """machine.env as a shell understands it."""
    program = """
        . ./machine.env
        for name in $(sed 's/=.*//' machine.env); do eval "echo \\"$name=\\$$name\\""; done
    """
    output = subprocess.run(
        ["busybox", "sh", "-c", program], cwd=folder, capture_output=True, text=True, check=True
    )
    return dict(line.split("=", 1) for line in output.stdout.splitlines())


async def test_guest_tar_and_shell_read_the_drive(tmp_path: Path) -> None:
    drive = tmp_path / "config.tar"
    await write_config_drive(drive, CONFIG, uid=64123)
    unpacked = tmp_path / "run"
    unpacked.mkdir()
    subprocess.run(["busybox", "tar", "-x", "-f", drive, "-C", unpacked, "-o"], check=True)
    assert sorted(path.name for path in unpacked.iterdir()) == [
        "authorized_keys", "ca.pem", "environment", "machine.env", "ssh_host_ed25519_key", "token",
    ]  # fmt: skip
    assert variables(unpacked) == {
        "POLYDEV_VM_ID": CONFIG.vm_id,
        "POLYDEV_KIND": "browser",
        "POLYDEV_HOSTNAME": "vm-00000000",
        "POLYDEV_ADDRESS": "192.168.100.5/24",
        "POLYDEV_MAC": "02:01:c0:a8:64:05",
        "POLYDEV_GATEWAY": "192.168.100.1",
        "POLYDEV_DNS": "8.8.8.8 1.1.1.1",
        "POLYDEV_CHANNEL_ADDRESS": "10.0.2.15/24",
        "POLYDEV_CHANNEL_MAC": "02:02:c0:a8:64:05",
        "POLYDEV_READY_NONCE": "0123abcd",
        "POLYDEV_CLOCK_S": "1700000000",
    }
    lines = (unpacked / "environment").read_text().splitlines()
    assert lines == ['A=it\'s "quoted" $(x) \\', "HTTPS_PROXY=http://192.168.100.1:3128"]
    for name in ("token", "ssh_host_ed25519_key"):
        assert (unpacked / name).stat().st_mode & 0o777 == 0o600


async def test_only_the_vmms_user_may_read_the_drive(tmp_path: Path) -> None:
    drive = tmp_path / "config.tar"
    for _ in range(2):
        await write_config_drive(drive, CONFIG, uid=64123)
    state = drive.stat()
    assert (state.st_uid, state.st_gid, state.st_mode & 0o7777) == (64123, 64123, 0o600)
    assert [path.name for path in tmp_path.iterdir()] == ["config.tar"]


def test_same_configuration_gives_the_same_sectors() -> None:
    drive = config_drive(CONFIG)
    assert drive == config_drive(dataclasses.replace(CONFIG, mac=CONFIG.mac.lower()))
    assert len(drive) % 512 == 0
    assert drive[257:263] == b"ustar\0"


def test_optional_members_are_omitted(tmp_path: Path) -> None:
    cli = dataclasses.replace(CONFIG, kind=MachineKind.CLI, ca_pem=None, token=None, environment={})
    (tmp_path / "drive").write_bytes(config_drive(cli))
    with tarfile.open(tmp_path / "drive") as archive:
        names = archive.getnames()
    assert "token" not in names
    assert "ca.pem" not in names
    assert "environment" in names


@pytest.mark.parametrize("value", ["a\nb", "a\0b", "a\rb", "\x1b[31m"])
@pytest.mark.parametrize("field", ["hostname", "token", "authorized_key", "ready_nonce"])
def test_values_with_control_characters_are_refused(field: str, value: str) -> None:
    with pytest.raises(Invalid):
        config_drive(dataclasses.replace(CONFIG, **{field: value}))  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["A B", "", "1A", "A=B", "A\n"])
def test_invalid_variable_names_are_refused(name: str) -> None:
    with pytest.raises(Invalid):
        config_drive(dataclasses.replace(CONFIG, environment={name: "x"}))


def test_repr_holds_no_secret() -> None:
    text = repr(CONFIG)
    for secret in ("a-made-up-token", "a private key", "3128"):
        assert secret not in text


async def test_keys_are_created_once_and_are_valid(tmp_path: Path) -> None:
    keys = await make_keys(tmp_path / "keys")
    assert await make_keys(tmp_path / "keys") == keys
    assert keys.host_private.decode() not in repr(keys)
    assert (tmp_path / "keys").stat().st_mode & 0o777 == 0o700
    for name, public in (
        ("ssh_host_ed25519_key", keys.host_public),
        ("channel_ed25519_key", keys.client_public),
    ):
        path = tmp_path / "keys" / name
        assert path.stat().st_mode & 0o777 == 0o600
        if shutil.which("ssh-keygen"):
            output = subprocess.run(
                ["ssh-keygen", "-y", "-f", path], capture_output=True, text=True, check=True
            )
            assert output.stdout.split()[:2] == public.split()[:2]
    assert keys.host_public != keys.client_public
