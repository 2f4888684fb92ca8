"""Create and inspect ext4 images with e2fsprogs, without mounting them."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

OWNER = 64123
"""The uid of a machine's VMM, which owns the images of these tests."""
TOKEN = b'{"token":"made-up-and-secret-4711"}'
AUTH = "/root/.codex/auth.json"
UPPER_AUTH = f"/upper{AUTH}"


def image_of(
    folder: Path, fill: Callable[[Path], None], *, size_mib: int = 64, options: tuple[str, ...] = ()
) -> Path:
    """Create an image of a folder that `fill` populates."""
    tree = folder / "tree"
    tree.mkdir()
    tree.chmod(0o755)
    fill(tree)
    image = folder / "disk.img"
    with image.open("wb") as file:
        file.truncate(size_mib << 20)
    subprocess.run(["mke2fs", "-q", "-t", "ext4", *options, "-d", tree, image], check=True)
    os.chown(image, OWNER, OWNER)
    return image


def inspect(image: Path, request: str) -> str:
    """Run a debugfs request and return its output."""
    result = subprocess.run(["debugfs", "-R", request, image], capture_output=True, check=True)
    return (result.stdout + result.stderr).decode("utf-8", "surrogateescape")


def content(image: Path, path: str) -> bytes:
    """Read a file; `path` starts at the image's root."""
    return subprocess.run(
        ["debugfs", "-R", f"cat {path}", image], capture_output=True, check=True
    ).stdout


def state(image: Path, path: str) -> tuple[str, int, int, int]:
    """Type, permission bits, uid and gid, from debugfs."""
    output = inspect(image, f"stat {path}")
    inode = re.search(r"Type: ([a-z A-Z]+?) +Mode: +0?([0-7]+)", output)
    owner = re.search(r"User: +(\d+) +Group: +(\d+)", output)
    assert inode is not None, output
    assert owner is not None, output
    return inode[1], int(inode[2], 8) & 0o7777, int(owner[1]), int(owner[2])


def exists(image: Path, path: str) -> bool:
    return "File not found" not in inspect(image, f"stat {path}")


def names(image: Path, path: str) -> list[str]:
    """The names in a directory, without `.` and `..`."""
    output = inspect(image, f"ls -p {path}")
    entries = (line.split("/") for line in output.splitlines() if line.startswith("/"))
    found = (fields[5] for fields in entries if fields[1] != "0")  # inode 0: a free entry
    return sorted(name for name in found if name not in {".", ".."})


def assert_clean(image: Path) -> None:
    """Assert that a full e2fsck finds nothing to repair."""
    result = subprocess.run(
        ["e2fsck", "-fn", image], capture_output=True, text=True, errors="replace", check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr


def debugfs(image: Path, *commands: str) -> None:
    """Run debugfs commands that change an image; ignore their failures."""
    script = "".join(f"{command}\n" for command in commands).encode()
    argv = ["debugfs", "-w", "-f", "-", image]
    subprocess.run(argv, input=script, capture_output=True, check=False)


def repair(image: Path, *options: str) -> None:
    """Let e2fsck repair what it finds."""
    subprocess.run(["e2fsck", "-fy", *options, image], capture_output=True, check=False)


def used_disk(
    folder: Path,
    fill: Callable[[Path], object] = lambda upper: None,
    *,
    size_mib: int = 64,
    options: tuple[str, ...] = (),
) -> Path:
    """Create a used machine disk; `fill` populates its upper directory."""

    def tree(root: Path) -> None:
        (root / "upper").mkdir()
        (root / "upper").chmod(0o755)
        (root / "work").mkdir()
        fill(root / "upper")

    return image_of(folder, tree, size_mib=size_mib, options=options)


def codex_folder(upper: Path) -> Path:
    """Create the folder that Codex creates on first use."""
    folder = upper / "root" / ".codex"
    folder.mkdir(parents=True)
    (upper / "root").chmod(0o700)
    return folder
