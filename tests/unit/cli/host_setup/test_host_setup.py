"""`polydev host setup` sets up, checks and removes a host in a folder."""

from __future__ import annotations

import compileall
import os
import stat
from pathlib import Path

import pytest
from setup_world import bare_root, host_setup, states, tree

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="files change hands")

MADE = ("user", "folders", "settings", "program", "modules", "units")
A_KEY = "made-up-key-that-sealed-something-0123456789"


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(compileall, "compile_dir", lambda *_, **__: True)  # takes seconds
    return bare_root(tmp_path)


def test_bare_system_is_set_up_and_removed(root: Path) -> None:
    before = tree(root)
    code, answer, _ = host_setup(root, "--check")
    assert (code, answer["ok"]) == (1, False)
    assert {name for name, state in states(answer).items() if state == "missing"} == set(MADE)
    assert tree(root) == before, "a check changes nothing"

    code, answer, _ = host_setup(root)
    assert (code, answer["ok"]) == (0, True), answer
    assert {name for name, state in states(answer).items() if state == "changed"} == set(MADE)

    made = tree(root)
    code, answer, _ = host_setup(root)
    assert (code, "changed" in states(answer).values()) == (0, False)
    assert tree(root) == made
    assert host_setup(root, "--check")[0] == 0

    code, answer, _ = host_setup(root, "--uninstall", "--purge", "--yes")
    assert (code, answer["kept"]) == (0, [])
    assert tree(root) == before


def test_data_and_key_stay_without_purge(root: Path) -> None:
    host_setup(root)
    key = (root / "etc/polydev/encryption-key").read_bytes()
    data = root / "var/lib/polydev/controller/polydev.db"
    data.write_bytes(b"people's")
    owner = data.parent.stat().st_uid

    code, answer, _ = host_setup(root, "--uninstall", "--yes")
    assert code == 0
    assert len(answer["kept"]) == 3, answer
    assert data.read_bytes() == b"people's"
    assert (root / "etc/polydev/encryption-key").read_bytes() == key
    assert f"polydev:x:{owner}:" in (root / "etc/passwd").read_text(), "its uid is not reused"
    assert not list((root / "etc/systemd/system").glob("polydev*"))
    assert not (root / "usr/local/lib/polydev").exists()

    assert host_setup(root)[0] == 0
    assert (root / "etc/polydev/encryption-key").read_bytes() == key
    assert data.read_bytes() == b"people's"
    host_setup(root, "--uninstall", "--purge", "--yes")
    assert not (root / "var/lib/polydev").exists()
    assert not (root / "etc/polydev").exists()


def test_uninstall_needs_confirmation(root: Path) -> None:
    host_setup(root)
    made = tree(root)
    code, answer, _ = host_setup(root, "--uninstall")
    assert code == 1
    assert "--yes" in answer["error"]["hint"]
    assert host_setup(root, "--purge")[0] == 1
    assert tree(root) == made


def test_key_is_created_once_and_never_printed(root: Path) -> None:
    _, _, printed = host_setup(root)
    path = root / "etc/polydev/encryption-key"
    key = path.read_text().strip()
    assert len(key) == 64
    assert key not in printed
    assert (stat.S_IMODE(path.stat().st_mode), path.stat().st_uid) == (0o600, 0)
    path.chmod(0o644)
    assert states(host_setup(root, "--check")[1])["settings"] == "missing"
    assert states(host_setup(root)[1])["settings"] == "changed"
    assert (path.read_text().strip(), stat.S_IMODE(path.stat().st_mode)) == (key, 0o600)


def test_existing_key_is_adopted(root: Path) -> None:
    _, _, printed = host_setup(root, ENCRYPTION_KEY=A_KEY)
    assert (root / "etc/polydev/encryption-key").read_text() == f"{A_KEY}\n"
    assert A_KEY not in printed
    assert A_KEY not in (root / "etc/polydev/polydev.env").read_text()


def test_settings_apply_to_later_runs(root: Path) -> None:
    given = {"POLYDEV_STATE_DIR": "/srv/polydev", "POLYDEV_USER": "vmhost", "POLYDEV_NETNS": "own"}
    assert host_setup(root, **given)[0] == 0
    code, answer, _ = host_setup(root, "--check")
    assert (code, answer["ok"]) == (0, True), answer
    unit = (root / "etc/systemd/system/polydev-controller.service").read_text()
    assert "\nUser=vmhost\n" in unit
    assert "ReadWritePaths=/srv/polydev/controller\n" in unit
    assert "POLYDEV_NETNS=own\n" in (root / "etc/polydev/polydev.env").read_text()


def test_a_unit_or_program_of_another_version_is_replaced(root: Path) -> None:
    host_setup(root)
    unit = root / "etc/systemd/system/polydev-hostd.service"
    ours = unit.read_bytes()
    unit.write_bytes(ours + b"# by hand\n")
    copies = root / "usr/local/lib/polydev"
    current = copies / (copies / "app").readlink()
    (copies / "app").unlink()
    (copies / "app").symlink_to("app-0123456789abcdef")
    (copies / "app-0123456789abcdef").mkdir()
    (copies / "app-new-cut-short").mkdir()
    _, answer, _ = host_setup(root)
    assert {name for name, state in states(answer).items() if state == "changed"} == {
        "program",
        "units",
    }
    assert unit.read_bytes() == ours
    stored = sorted(path.name for path in copies.glob("app-*"))
    assert stored == sorted([current.name, "app-0123456789abcdef"]), (
        "the previous installation, complete"
    )


def test_used_uids_of_machines_are_reported(root: Path) -> None:
    (root / "etc/subuid").write_text("someone:1899999000:65536\n")
    code, answer, _ = host_setup(root)
    assert code == 1
    reported = next(item for item in answer["items"] if item["name"] == "uids")
    assert reported["state"] == "missing"
    assert "subuid assigns ids" in reported["message"]


@pytest.mark.parametrize(
    ("files", "state"),
    [
        ({"etc/sysctl.d/50-hardening.conf": "net.ipv4.ip_forward = 0\n"}, "missing"),
        ({"etc/sysctl.d/50-hardening.conf": "# net.ipv4.ip_forward = 0\n"}, "ok"),
        ({"usr/lib/sysctl.d/50-x.conf": "-user/max_net_namespaces=0\n"}, "missing"),
        (
            {
                "etc/sysctl.d/50-x.conf": "net.ipv4.ip_forward=0\n",
                "etc/sysctl.d/99-x.conf": "net.ipv4.ip_forward=1\n",
            },
            "ok",
        ),
        (
            {
                "usr/lib/sysctl.d/50-x.conf": "net.ipv4.ip_forward=0\n",
                "etc/sysctl.d/50-x.conf": "# masks the other\n",
            },
            "ok",
        ),
    ],
)
def test_conflicting_sysctl_is_reported(root: Path, files: dict[str, str], state: str) -> None:
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(content)
    assert states(host_setup(root, "--check")[1])["sysctls"] == state


def test_folder_without_a_system_is_refused(tmp_path: Path) -> None:
    code, answer, _ = host_setup(tmp_path)
    assert code == 1
    assert "not the root of a system" in answer["error"]["message"]
    assert list(tmp_path.iterdir()) == []
