"""The fake `jailer`: builds a real jail, then continues as the fake VMM.

The real jailer execs Firecracker; this one continues in the same process, since Python could not
start in a root without its library. Everything is imported before. Source: docs/jailer.md and
src/jailer of Firecracker 1.13.
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
    """Run it; return 1 with a message on standard error if the jail cannot be built."""
    options = _parser().parse_args(argv)
    try:
        firecracker.prepare()
        root = _root(options)
        _close_others()
        if options.netns:
            _enter(options.netns)
        for limit in options.resource_limit:
            name, value = limit.split("=")
            resource.setrlimit(_LIMITS[name], (int(value), int(value)))
        _join_cgroup(options.parent_cgroup, options.id, options.cgroup)
        _become_root(root)
        _make_devices(options.uid, options.gid)
        os.setgroups([])
        os.setresgid(options.gid, options.gid, options.gid)
        os.setresuid(options.uid, options.uid, options.uid)
        os.environ.clear()
        os.environ["HOME"] = "/"  # needed by asyncssh
    except (OSError, ValueError, KeyError) as error:
        print(f"fake jailer: {error}", file=sys.stderr)
        return 1
    return firecracker.main(["--id", options.id, *options.rest], version)


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


def _root(options: argparse.Namespace) -> Path:
    """Create the jail's folder, with a copy of the program."""
    program: Path = options.exec_file.resolve(strict=True)
    if "firecracker" not in program.name:
        raise ValueError(f"the program's name must hold `firecracker`: {program}")
    if not re.fullmatch(r"[A-Za-z0-9-]{1,64}", options.id):
        raise ValueError(f"not an id: {options.id}")
    root: Path = options.chroot_base_dir.resolve(strict=True) / program.name / options.id / "root"
    root.mkdir(parents=True, exist_ok=True)
    shutil.copy(program, root / program.name)
    os.chown(root / program.name, options.uid, options.gid)
    return root


def _enter(netns: Path) -> None:
    with netns.open("rb") as file:
        _checked(_libc.setns(file.fileno(), _CLONE_NEWNET), f"setns {netns}")


def _close_others() -> None:
    os.closerange(3, os.sysconf("SC_OPEN_MAX"))


def _join_cgroup(parent: str, name: str, wanted: Sequence[str]) -> None:
    """Join the cgroup; limits without a controller are skipped, unlike in the real one."""
    mounted = cgroup.root()
    if mounted is None:
        print("fake jailer: this host has no cgroup v2", file=sys.stderr)
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
    os.mkdir("old_root")  # noqa: PTH102 - relative, as in the real jailer
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
