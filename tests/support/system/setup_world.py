"""A folder that looks like a system's root, and a fake Firecracker release.

Tests of host set-up work below such a folder and change nothing of the real system.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import platform
import stat
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from typer.testing import CliRunner

from polydev.cli.main import app
from polydev.shared.errors import PolydevError

VERSION = "1.13.1"

_ACCOUNTS = {
    "passwd": ("root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534::/:/usr/sbin/nologin\n", 0o644),
    "group": ("root:x:0:\nnogroup:x:65534:\n", 0o644),
    "shadow": ("root:*:19000:0:99999:7:::\nnobody:*:19000:0:99999:7:::\n", 0o640),
    "gshadow": ("root:*::\nnogroup:*::\n", 0o640),
}


def bare_root(tmp_path: Path) -> Path:
    """Create a root with only account files."""
    root = tmp_path / "root"
    (root / "etc").mkdir(parents=True)
    (root / "var" / "lib").mkdir(parents=True)
    for path in (root, *root.rglob("*")):
        path.chmod(0o755)
    for name, (content, mode) in _ACCOUNTS.items():
        (root / "etc" / name).write_text(content)
        (root / "etc" / name).chmod(mode)
    return root


def tree(root: Path) -> dict[str, tuple[object, ...]]:
    """Mode, owner and content of everything below a folder.

    Leaves out the backups and the lock of shadow's account files.
    """
    return {
        str(path.relative_to(root)): _inspected(path)
        for path in sorted(root.rglob("*"))
        if not (path.parent.name == "etc" and (path.name.endswith("-") or path.name == ".pwd.lock"))
    }


def _inspected(path: Path) -> tuple[object, ...]:
    found = path.lstat()
    content: object = None
    if stat.S_ISLNK(found.st_mode):
        content = str(path.readlink())
    elif stat.S_ISREG(found.st_mode):
        content = path.read_bytes()
    return found.st_mode, found.st_uid, found.st_gid, content


def host_setup(root: Path, *arguments: str, **env: str) -> tuple[int, Mapping[str, Any], str]:
    """Run `polydev host setup --json ...` on a root; return exit code, JSON and output."""
    was = dict(os.environ)
    os.environ.clear()
    os.environ |= {"PATH": was["PATH"], "POLYDEV_SETUP_ROOT": str(root), "POLYDEV_DRIVER": "qemu"}
    os.environ |= env
    try:
        done = CliRunner().invoke(app, ["host", "setup", "--json", *arguments], prog_name="polydev")
    finally:
        os.environ.clear()
        os.environ |= was
    if isinstance(done.exception, PolydevError):
        error = {"message": done.exception.message, "hint": done.exception.hint}
        return 1, {"ok": False, "error": error}, done.output
    assert done.stdout, done.exception
    return done.exit_code, json.loads(done.stdout), done.output


def states(answer: Mapping[str, Any]) -> dict[str, str]:
    """Item names -> states."""
    return {item["name"]: item["state"] for item in answer["items"]}


def program(version: str = VERSION) -> bytes:
    """A program that prints the version of a Firecracker."""
    return f"#!/bin/sh\necho Firecracker v{version}\n".encode()


def archive(
    path: Path, version: str = VERSION, extra: tuple[tarfile.TarInfo, ...] = (), **programs: bytes
) -> str:
    """Write a release archive with the project's layout; return its SHA-256."""
    machine = platform.machine()
    contents = {"firecracker": program(version), "jailer": program(version), **programs}
    with tarfile.open(path, "w:gz") as members:
        for member in extra:
            members.addfile(member, io.BytesIO(b"x" * member.size))
        for name, content in contents.items():
            member = tarfile.TarInfo(f"release-v{version}-{machine}/{name}-v{version}-{machine}")
            member.size, member.mode = len(content), 0o755
            members.addfile(member, io.BytesIO(content))
    return hashlib.sha256(path.read_bytes()).hexdigest()
