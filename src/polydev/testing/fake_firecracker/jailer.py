"""The stand-in for `jailer`: builds a jail as the real one does, then is the stand-in VMM itself.

Where the real jailer replaces itself with Firecracker, this one goes on as the stand-in: a Python
could not start in a root without its library. Everything is imported before.
Source: docs/jailer.md and src/jailer of Firecracker 1.13.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import re
import resource
import shutil
import stat
import sys
from collections.abc import Sequence
from pathlib import Path

from polydev.hostagent.vmm.firecracker.jail import cgroup
from polydev.testing.fake_firecracker import firecracker

_CLONE_NEWNS, _CLONE_NEWNET = 0x20000, 0x40000000
_MS_BIND, _MS_REC, _MS_SLAVE, _MNT_DETACH = 0x1000, 0x4000, 0x80000, 2
_SYS_PIVOT_ROOT = 155  # x86-64
_DEVICES = (("dev/net/tun", 10, 200), ("dev/kvm", 10, 232))
_LIMITS = {"fsize": resource.RLIMIT_FSIZE, "no-file": resource.RLIMIT_NOFILE}
_libc = ctypes.CDLL(None, use_errno=True)


def main(argv: Sequence[str], version: str) -> int:
    """Run it. 1 with a line on standard error when the jail cannot be built."""
    asked = _parser().parse_args(argv)
    try:
        firecracker.prepare()
        root = _root(asked)
        _close_others()
        if asked.netns:
            _enter(asked.netns)
        for limit in asked.resource_limit:
            name, value = limit.split("=")
            resource.setrlimit(_LIMITS[name], (int(value), int(value)))
        _join_cgroup(asked.parent_cgroup, asked.id, asked.cgroup)
        _become_root(root)
        _make_devices(asked.uid, asked.gid)
        os.setgroups([])
        os.setresgid(asked.gid, asked.gid, asked.gid)
        os.setresuid(asked.uid, asked.uid, asked.uid)
        os.environ.clear()
        os.environ["HOME"] = "/"  # asyncssh asks for it
    except (OSError, ValueError, KeyError) as error:
        print(f"jailer stand-in: {error}", file=sys.stderr)
        return 1
    return firecracker.main(["--id", asked.id, *asked.rest], version)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("jailer", allow_abbrev=False)
    parser.add_argument("--id", required=True)
    parser.add_argument("--exec-file", type=Path, required=True)
    parser.add_argument("--uid", type=int, required=True)
    parser.add_argument("--gid", type=int, required=True)
    parser.add_argument("--chroot-base-dir", type=Path, required=True)
    parser.add_argument("--cgroup-version", choices=["2"], required=True)
    parser.add_argument("--parent-cgroup", required=True)
    parser.add_argument("--cgroup", action="append", default=[])
    parser.add_argument("--netns", type=Path)
    parser.add_argument("--resource-limit", action="append", default=[])
    parser.add_argument("rest", nargs="*")
    return parser


def _root(asked: argparse.Namespace) -> Path:
    """The jail's folder, with a copy of the program in it."""
    program: Path = asked.exec_file.resolve(strict=True)
    if "firecracker" not in program.name:
        raise ValueError(f"the program's name must hold `firecracker`: {program}")
    if not re.fullmatch(r"[A-Za-z0-9-]{1,64}", asked.id):
        raise ValueError(f"not an id: {asked.id}")
    root: Path = asked.chroot_base_dir.resolve(strict=True) / program.name / asked.id / "root"
    root.mkdir(parents=True, exist_ok=True)
    shutil.copy(program, root / program.name)
    os.chown(root / program.name, asked.uid, asked.gid)
    return root


def _enter(netns: Path) -> None:
    with netns.open("rb") as file:
        _checked(_libc.setns(file.fileno(), _CLONE_NEWNET), f"setns {netns}")


def _close_others() -> None:
    os.closerange(3, os.sysconf("SC_OPEN_MAX"))


def _join_cgroup(parent: str, name: str, wanted: Sequence[str]) -> None:
    """What the host has no controller for is left out, where the real one would refuse."""
    mounted = cgroup.root()
    if mounted is None:
        print("jailer stand-in: this host has no cgroup v2", file=sys.stderr)
        return
    folder = mounted / parent / name
    folder.mkdir(parents=True)
    for word in wanted:
        file, _, value = word.partition("=")
        if (folder / file).exists():
            (folder / file).write_text(value)
    (folder / "cgroup.procs").write_text(str(os.getpid()))


def _become_root(root: Path) -> None:
    _checked(_libc.unshare(_CLONE_NEWNS), "unshare")
    _checked(_libc.mount(None, b"/", None, ctypes.c_ulong(_MS_SLAVE | _MS_REC), None), "slave")
    where = os.fsencode(root)
    flags = ctypes.c_ulong(_MS_BIND | _MS_REC)
    _checked(_libc.mount(where, where, None, flags, None), "bind")
    os.chdir(root)
    os.mkdir("old_root")  # noqa: PTH102 - of the folder that we are in, as the real one does it
    _checked(_libc.syscall(_SYS_PIVOT_ROOT, b".", b"old_root"), "pivot_root")
    os.chdir("/")
    _checked(_libc.umount2(b"old_root", _MNT_DETACH), "umount")
    Path("/old_root").rmdir()


def _make_devices(uid: int, gid: int) -> None:
    for folder in ("/", "/dev", "/dev/net", "/run"):
        Path(folder).mkdir(mode=0o700, exist_ok=True)
        os.chown(folder, uid, gid)
    for name, major, minor in _DEVICES:
        os.mknod(f"/{name}", stat.S_IFCHR | 0o600, os.makedev(major, minor))
        os.chown(f"/{name}", uid, gid)


def _checked(result: int, what: str) -> None:
    if result != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{what}: {os.strerror(code)}")
