"""Preflight checks of the host agent, and the logs of machines."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from polydev.hostagent.health import preflight
from polydev.hostagent.machines.provisioner import environment
from polydev.hostagent.server.single_instance import listening, only_agent
from polydev.hostagent.settings import Egress, HostSettings
from polydev.hostagent.system import logs
from polydev.shared.errors import AlreadyRunning, BadSettings, MissingTool, Refused


def test_missing_program_is_named_with_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    present = {"nft", "mke2fs", "e2fsck", "qemu-system-x86_64"}
    monkeypatch.setattr(
        "polydev.hostagent.health.preflight.shutil.which",
        lambda tool: tool if tool in present else None,
    )
    with pytest.raises(MissingTool) as raised:
        preflight.require("auto")
    assert raised.value.line() == "debugfs is not installed. Install it: apt-get install e2fsprogs"
    preflight.require("simulated")


def test_host_agent_requires_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(Refused):
        preflight.require("simulated")


def test_programs_in_sbin_are_found_without_it_on_path(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PATH", "/usr/bin")
    preflight.require("auto")


def test_one_agent_holds_a_state_folder_and_a_namespace(tmp_path: Path) -> None:
    with only_agent(tmp_path, "pdt-one"):
        with pytest.raises(AlreadyRunning), only_agent(tmp_path, "pdt-two"):
            pass
        with pytest.raises(AlreadyRunning, match="pdt-one"), only_agent(tmp_path / "b", "pdt-one"):
            pass
    with only_agent(tmp_path, "pdt-one"):
        pass
    assert not [name for name in ("one", "two") if Path(f"/run/polydev-pdt-{name}.lock").exists()]
    assert not list(tmp_path.rglob("*.lock"))


def test_stale_socket_of_a_killed_agent_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "sockets" / "h.sock"
    path.parent.mkdir()
    stale = socket.socket(socket.AF_UNIX)
    stale.bind(str(path))
    stale.close()
    with listening(path, None), socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))
    assert not path.exists()


def test_socket_of_another_program_is_not_replaced(tmp_path: Path) -> None:
    path = tmp_path / "h.sock"
    with listening(path, None):
        with pytest.raises(AlreadyRunning), listening(path, None):
            pass
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))


def test_too_long_socket_path_names_the_setting(tmp_path: Path) -> None:
    with (
        pytest.raises(BadSettings, match="POLYDEV_STATE_DIR"),
        listening(tmp_path / ("x" * 99), ""),
    ):
        pass


@pytest.mark.parametrize(
    ("printed", "shown"),
    [
        (b"plain\ttext\n", "plain\ttext\n"),
        (b"one\r\ntwo\rthree\n", "one\ntwo\nthree\n"),
        (b"\x1b[31mred\x1b[0m \x1b]0;title\x07x", "red x"),
        (b"\x1b]52;c;aGk=\x1b\\y\x1bM\x1b(0z", "yz"),
        (b"\x00\x07\x08\x7f\xc2\x9b31m", "31m"),
        ("\u202eevil\u2066\u2028".encode(), "evil"),
        (b"\xff\xfe", "\ufffd\ufffd"),
        (b"\x1b", ""),
    ],
)
def test_guest_output_is_shown_harmless(tmp_path: Path, printed: bytes, shown: str) -> None:
    log = tmp_path / "console.log"
    log.write_bytes(printed)
    assert logs.tail(log, 1000) == shown


def test_only_the_end_of_a_log_is_read(tmp_path: Path) -> None:
    log = tmp_path / "console.log"
    log.write_bytes(b"a" * 3_000_000 + b"end")
    assert logs.tail(log, 4) == "aend"
    assert logs.tail(log, 0) == ""
    assert len(logs.tail(log, 10_000_000)) == logs.MAX_TAIL_BYTES
    assert logs.tail(tmp_path / "none", 10) == ""


def test_pipe_in_place_of_a_log_does_not_block(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "console.log")
    assert logs.tail(tmp_path / "console.log", 10) == ""


def test_machines_get_proxy_and_authorities(tmp_path: Path) -> None:
    assert environment(HostSettings()) == {}
    variables = environment(
        HostSettings(
            egress=Egress.PROXY,
            egress_proxy="http://10.1.2.3:3128",
            egress_ca_file=tmp_path / "ca.pem",
        )
    )
    assert variables["HTTPS_PROXY"] == variables["http_proxy"] == "http://10.1.2.3:3128"
    assert "127.0.0.1" in variables["NO_PROXY"].split(",")
    assert variables["SSL_CERT_FILE"] == "/run/polydev/ca-bundle.pem"
