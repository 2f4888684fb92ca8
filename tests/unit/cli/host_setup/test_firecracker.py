"""Only complete, pinned releases of Firecracker are installed. These releases are fakes."""

from __future__ import annotations

import os
import platform
import signal
import socket
import subprocess
import sys
import tarfile
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from setup_world import VERSION, archive, bare_root, program, tree

from polydev.cli.host_setup.resource import State
from polydev.cli.host_setup.resources.firecracker import Firecracker
from polydev.cli.host_setup.resources.release import Release
from polydev.cli.host_setup.target_root import TargetRoot
from polydev.shared.errors import (
    AlreadyExists,
    BadSettings,
    ImageDamaged,
    PolydevError,
    Unavailable,
)

MACHINE = platform.machine()


class Mirror(ThreadingHTTPServer):
    """Serve given bytes with a given content length."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Answer)
        self.files: dict[str, tuple[bytes, int]] = {}
        self.asked = threading.Event()
        self.go_on = threading.Event()
        self.go_on.set()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/mirror"

    def put(self, version: str, content: bytes, length: int | None = None) -> None:
        name = f"/mirror/v{version}/firecracker-v{version}-{MACHINE}.tgz"
        self.files[name] = content, len(content) if length is None else length


class _Answer(BaseHTTPRequestHandler):
    server: Mirror

    def do_GET(self) -> None:
        content, length = self.server.files.get(self.path, (b"", -1))
        self.send_response(200 if length >= 0 else 404)
        self.send_header("Content-Length", str(max(length, 0)))
        self.end_headers()
        self.wfile.write(content[: len(content) // 2])
        self.server.asked.set()
        self.server.go_on.wait(30)
        self.wfile.write(content[len(content) // 2 :])

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def mirror() -> Iterator[Mirror]:
    with Mirror() as it:
        serving = threading.Thread(target=it.serve_forever)
        serving.start()
        yield it
        it.go_on.set()
        it.shutdown()
        serving.join()


@pytest.fixture
def target(tmp_path: Path) -> TargetRoot:
    return TargetRoot(bare_root(tmp_path))


def item(
    target: TargetRoot,
    sha256: str | None,
    mirror: str = "http://127.0.0.1:9",
    version: str = VERSION,
) -> Firecracker:
    return Firecracker(target, Release(version, MACHINE, sha256, mirror), None, "firecracker")


def refused(it: Firecracker, kind: type[PolydevError]) -> str:
    """Assert that nothing was installed; returns the error."""
    before = tree(it.target.root)
    with pytest.raises(kind) as reported:
        it.apply()
    left = set(tree(it.target.root)) - set(before)
    assert not [name for name in left if "firecracker" in name], left
    assert it.check().state is State.MISSING
    assert "\n" not in reported.value.line()
    return reported.value.line()


def test_a_pinned_release_is_installed_from_the_mirror(
    target: TargetRoot, mirror: Mirror, tmp_path: Path
) -> None:
    before = tree(target.root)
    sha256 = archive(tmp_path / "a.tgz")
    mirror.put(VERSION, (tmp_path / "a.tgz").read_bytes())
    it = item(target, sha256, mirror.url)
    assert it.check().state is State.MISSING
    it.apply()
    assert it.check().state is State.OK
    installed = target.at("/usr/local/lib/polydev/firecracker-1.13.1")
    assert sorted(path.name for path in installed.iterdir()) == [
        "firecracker",
        "jailer",
        "manifest.json",
    ]
    for name in ("firecracker", "jailer"):
        assert (installed / name).stat().st_mode & 0o7777 == 0o755
        link = target.at(f"/usr/local/bin/{name}").readlink()
        assert str(link) == f"/usr/local/lib/polydev/firecracker/{name}"
    made = tree(target.root)
    it.apply()
    assert set(tree(target.root)) == set(made)
    it.revert(purge=False)
    assert tree(target.root) == before


def test_local_archive_needs_no_network(target: TargetRoot, tmp_path: Path) -> None:
    sha256 = archive(tmp_path / "a.tgz")
    release = Release(VERSION, MACHINE, sha256, "http://127.0.0.1:9")
    it = Firecracker(target, release, tmp_path / "a.tgz", "auto")
    it.apply()
    assert it.check().state is State.OK


def test_missing_pin_prevents_the_download(target: TargetRoot, mirror: Mirror) -> None:
    text = refused(item(target, None, mirror.url), BadSettings)
    assert "POLYDEV_FIRECRACKER_SHA256" in text
    assert f"firecracker-v{VERSION}-{MACHINE}.tgz.sha256.txt" in text
    assert not mirror.asked.is_set()


@pytest.mark.parametrize("pin", ["f" * 63, "g" * 64, "yes"])
def test_invalid_pin_is_refused(pin: str) -> None:
    with pytest.raises(BadSettings, match="POLYDEV_FIRECRACKER_SHA256"):
        Release.wanted(sha256=pin)


def test_unpinned_archive_is_refused(target: TargetRoot, mirror: Mirror, tmp_path: Path) -> None:
    archive(tmp_path / "a.tgz")
    mirror.put(VERSION, (tmp_path / "a.tgz").read_bytes())
    assert "SHA-256" in refused(item(target, "0" * 64, mirror.url), ImageDamaged)


def test_truncated_archive_is_refused(target: TargetRoot, mirror: Mirror, tmp_path: Path) -> None:
    sha256 = archive(tmp_path / "a.tgz")
    content = (tmp_path / "a.tgz").read_bytes()
    mirror.put(VERSION, content[:-20], len(content))  # the connection ends before the archive
    assert "Cannot download" in refused(item(target, sha256, mirror.url), Unavailable)
    mirror.put(VERSION, content[:-20])  # the mirror's own copy is short
    assert "SHA-256" in refused(item(target, sha256, mirror.url), ImageDamaged)


def test_mirror_failures_are_reported(target: TargetRoot, mirror: Mirror) -> None:
    assert "404" in refused(item(target, "0" * 64, mirror.url), Unavailable)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, but not listening
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        text = refused(item(target, "0" * 64, url), Unavailable)
    assert "--firecracker-archive" in text


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_interrupted_download_installs_nothing(
    target: TargetRoot, mirror: Mirror, tmp_path: Path, number: signal.Signals
) -> None:
    sha256 = archive(tmp_path / "a.tgz")
    mirror.put(VERSION, (tmp_path / "a.tgz").read_bytes())
    mirror.go_on.clear()
    text = (str(target.root), VERSION, MACHINE, sha256, mirror.url)
    env = {"PATH": os.environ["PATH"], "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen([sys.executable, "-c", INSTALL, *text], env=env) as installing:
        assert mirror.asked.wait(60)
        installing.send_signal(number)
        assert installing.wait(15) != 0, "Ctrl-C does not wait for a silent mirror"
    mirror.go_on.set()
    it = item(target, sha256, mirror.url)
    assert it.check().state is State.MISSING
    assert not target.at("/usr/local/bin").exists()
    it.apply()
    assert it.check().state is State.OK
    assert not list(target.at("/usr/local/lib/polydev").glob(".*"))


INSTALL = """
import asyncio
import sys
from pathlib import Path
from polydev.cli.host_setup import resource as items
from polydev.cli.host_setup.resources.firecracker import Firecracker
from polydev.cli.host_setup.target_root import TargetRoot
from polydev.cli.host_setup.resources.release import Release

async def install(root, *release):
    it = Firecracker(TargetRoot(Path(root)), Release(*release), None, "firecracker")
    async for verdict in items.apply([it]):
        print(verdict)

asyncio.run(install(*sys.argv[1:]))
"""


def test_old_version_stays_until_the_new_one_works(
    target: TargetRoot, mirror: Mirror, tmp_path: Path
) -> None:
    old = archive(tmp_path / "old.tgz", "1.13.0")
    mirror.put("1.13.0", (tmp_path / "old.tgz").read_bytes())
    item(target, old, mirror.url, "1.13.0").apply()
    installed = tree(target.root)

    for broken in (b"#!/nowhere\n", program("1.0.0"), b"#!/bin/sh\nexit 1\n"):
        sha256 = archive(tmp_path / "new.tgz", firecracker=broken)
        mirror.put(VERSION, (tmp_path / "new.tgz").read_bytes())
        refused(item(target, sha256, mirror.url), ImageDamaged)
        assert tree(target.root) == installed

    sha256 = archive(tmp_path / "new.tgz")
    mirror.put(VERSION, (tmp_path / "new.tgz").read_bytes())
    item(target, sha256, mirror.url).apply()
    folders = [path.name for path in target.at("/usr/local/lib/polydev").glob("firecracker-*")]
    assert folders == [f"firecracker-{VERSION}"]


def _hostile(name: str, **fields: object) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    for field, value in fields.items():
        setattr(member, field, value)
    return member


def test_only_the_two_programs_are_extracted(target: TargetRoot, tmp_path: Path) -> None:
    folder = f"release-v{VERSION}-{MACHINE}"
    extra = (
        _hostile("../../../../etc/cron.d/x", size=3),
        _hostile("/etc/cron.d/y", size=3),
        _hostile(f"{folder}/manifest.json", size=3),
        _hostile(f"{folder}/jailer-v{VERSION}-{MACHINE}", type=tarfile.SYMTYPE, linkname="/bin/sh"),
        _hostile(f"{folder}/firecracker-v{VERSION}-{MACHINE}", type=tarfile.CHRTYPE),
    )
    sha256 = archive(tmp_path / "a.tgz", extra=extra)
    release = Release(VERSION, MACHINE, sha256)
    before = set(tree(target.root))
    it = Firecracker(target, release, tmp_path / "a.tgz", "auto")
    it.apply()
    assert it.check().state is State.OK
    assert not any("cron" in name for name in set(tree(target.root)) - before)
    jailer = target.at(
        "/usr/local/lib/polydev/firecracker/jailer".replace("cker/", f"cker-{VERSION}/")
    )
    assert not jailer.is_symlink()
    assert jailer.read_bytes() == program()


@pytest.mark.parametrize(
    ("extra", "programs"),
    [
        (tuple(_hostile(f"file-{number}", size=0) for number in range(1001)), {}),
        ((), {"firecracker": bytes(65 << 20)}),
    ],
    ids=["too many files", "a program that is too large"],
)
def test_oversized_archive_is_refused(
    target: TargetRoot,
    tmp_path: Path,
    extra: tuple[tarfile.TarInfo, ...],
    programs: dict[str, bytes],
) -> None:
    sha256 = archive(tmp_path / "a.tgz", extra=extra, **programs)
    release = Release(VERSION, MACHINE, sha256)
    refused(Firecracker(target, release, tmp_path / "a.tgz", "auto"), ImageDamaged)


def test_an_archive_without_a_jailer_is_refused(target: TargetRoot, tmp_path: Path) -> None:
    sha256 = archive(tmp_path / "a.tgz", "1.13.0")
    release = Release(VERSION, MACHINE, sha256)
    text = refused(Firecracker(target, release, tmp_path / "a.tgz", "auto"), ImageDamaged)
    assert f"jailer-v{VERSION}" in text


def test_changed_program_is_detected_and_replaced(target: TargetRoot, tmp_path: Path) -> None:
    sha256 = archive(tmp_path / "a.tgz")
    it = Firecracker(target, Release(VERSION, MACHINE, sha256), tmp_path / "a.tgz", "auto")
    it.apply()
    target.at(f"/usr/local/lib/polydev/firecracker-{VERSION}/jailer").write_bytes(b"changed")
    assert "has changed" in it.check().message
    it.apply()
    assert it.check().state is State.OK


def test_foreign_firecracker_stays(target: TargetRoot, tmp_path: Path) -> None:
    theirs = target.at("/usr/local/bin/firecracker")
    theirs.parent.mkdir(parents=True)
    theirs.write_bytes(b"theirs")
    sha256 = archive(tmp_path / "a.tgz")
    it = Firecracker(target, Release(VERSION, MACHINE, sha256), tmp_path / "a.tgz", "auto")
    refused(it, AlreadyExists)
    it.revert(purge=True)
    assert theirs.read_bytes() == b"theirs"
