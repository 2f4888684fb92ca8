"""Builds the initramfs: busybox, one script, and kernel modules in load order.

The archive is written here rather than by cpio(1), so that equal inputs give equal bytes.
"""

from __future__ import annotations

import stat
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

_FOLDERS = ("bin", "dev", "proc", "sys", "run", "lower", "disk", "root", "modules")


@dataclass(frozen=True, slots=True)
class Member:
    """A file or folder of the archive; a folder has no content."""

    name: str
    mode: int
    content: bytes = b""


def ordered_modules(folder: Path, wanted: Sequence[str]) -> list[Path]:
    """Return the files of wanted modules and their dependencies, in load order.

    `folder` is `/lib/modules/<release>` with depmod's index. Built-in modules are left out. Raises:
    KeyError naming a module that the kernel does not have. Source: modules.dep(5): a module's
    dependencies are listed in reverse load order.
    """
    needs = _index(folder / "modules.dep")
    builtin = {_module_name(line) for line in (folder / "modules.builtin").read_text().splitlines()}
    by_name = {_module_name(path): path for path in needs}
    ordered: dict[str, None] = {}
    for name in (module.replace("-", "_") for module in wanted):
        if name in builtin:
            continue
        path = by_name[name]
        for needed in (*reversed(needs[path]), path):
            ordered.setdefault(needed)
    return [folder / path for path in ordered]


def pack(script: bytes, phases: bytes, busybox: bytes, modules: Mapping[str, bytes]) -> bytes:
    """Build the archive of an initramfs; `modules` are loaded in this order."""
    members = [Member(name, stat.S_IFDIR | 0o755) for name in _FOLDERS]
    members += [
        Member("init", stat.S_IFREG | 0o755, script),
        Member("phases.sh", stat.S_IFREG | 0o644, phases),
        Member("bin/busybox", stat.S_IFREG | 0o755, busybox),
    ]
    for number, (name, content) in enumerate(modules.items()):
        members.append(Member(f"modules/{number:02}-{name}", stat.S_IFREG | 0o644, content))
    return b"".join(_newc_archive(members))


def _newc_archive(members: Sequence[Member]) -> Iterator[bytes]:
    """Source: the kernel's Documentation/driver-api/early-userspace/buffer-format.rst."""
    for inode, member in enumerate([*members, Member("TRAILER!!!", 0)], start=1):
        name = member.name.encode() + b"\0"
        fields = (inode, member.mode, 0, 0, 1, 0, len(member.content)) + (0,) * 4 + (len(name), 0)
        yield _padded(b"070701" + b"".join(b"%08X" % field for field in fields) + name)
        yield _padded(member.content)


def _padded(data: bytes) -> bytes:
    return data + b"\0" * (-len(data) % 4)


def _index(path: Path) -> dict[str, list[str]]:
    index = {}
    for line in path.read_text().splitlines():
        module, _, needs = line.partition(":")
        index[module] = needs.split()
    return index


def _module_name(path: str) -> str:
    return path.rpartition("/")[2].partition(".ko")[0].replace("-", "_")
