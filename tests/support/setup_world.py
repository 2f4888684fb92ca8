"""A folder that looks like a machine, what is in it, and a release of Firecracker that was made up.

The set-up's tests work below such a folder: nothing of the machine they run on is changed.
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
    """A system with nothing but its accounts."""
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
    """Everything below a folder: kind, mode, owner, content. shadow's own backups and lock of the
    account files are the distribution's, and left out."""
    return {
        str(path.relative_to(root)): _seen(path)
        for path in sorted(root.rglob("*"))
        if not (path.parent.name == "etc" and (path.name.endswith("-") or path.name == ".pwd.lock"))
    }


def _seen(path: Path) -> tuple[object, ...]:
    found = path.lstat()
    content: object = None
    if stat.S_ISLNK(found.st_mode):
        content = str(path.readlink())
    elif stat.S_ISREG(found.st_mode):
        content = path.read_bytes()
    return found.st_mode, found.st_uid, found.st_gid, content


def host_setup(root: Path, *words: str, **env: str) -> tuple[int, Mapping[str, Any], str]:
    """`polydev host setup --json ...` on that root: exit code, answer, and all that was printed."""
    was = dict(os.environ)
    os.environ.clear()
    os.environ |= {"PATH": was["PATH"], "POLYDEV_SETUP_ROOT": str(root), "POLYDEV_DRIVER": "qemu"}
    os.environ |= env
    try:
        done = CliRunner().invoke(app, ["host", "setup", "--json", *words], prog_name="polydev")
    finally:
        os.environ.clear()
        os.environ |= was
    if isinstance(done.exception, PolydevError):
        error = {"message": done.exception.message, "hint": done.exception.hint}
        return 1, {"ok": False, "error": error}, done.output
    assert done.stdout, done.exception
    return done.exit_code, json.loads(done.stdout), done.output


def states(answer: Mapping[str, Any]) -> dict[str, str]:
    """Item -> how it stands."""
    return {item["name"]: item["state"] for item in answer["items"]}


def program(version: str = VERSION) -> bytes:
    """A program that says that it is a Firecracker of that version."""
    return f"#!/bin/sh\necho Firecracker v{version}\n".encode()


def archive(
    path: Path, version: str = VERSION, extra: tuple[tarfile.TarInfo, ...] = (), **programs: bytes
) -> str:
    """Write a release's archive, laid out as the project lays it out; its SHA-256."""
    machine = platform.machine()
    contents = {"firecracker": program(version), "jailer": program(version), **programs}
    with tarfile.open(path, "w:gz") as members:
        for member in extra:
            members.addfile(member, io.BytesIO(b"x" * member.size))
        for name, content in contents.items():
            told = f"release-v{version}-{machine}/{name}-v{version}-{machine}"
            member = tarfile.TarInfo(told)
            member.size, member.mode = len(content), 0o755
            members.addfile(member, io.BytesIO(content))
    return hashlib.sha256(path.read_bytes()).hexdigest()
