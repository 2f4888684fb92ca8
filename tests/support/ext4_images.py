"""Makes ext4 images with anything in them, and looks into them, with e2fsprogs and no mount."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

OWNER = 64123
"""As whom a machine's VMM would run: the images of these tests belong to it."""
TOKEN = b'{"token":"made-up-and-secret-4711"}'
AUTH = "/root/.codex/auth.json"
UPPER_AUTH = f"/upper{AUTH}"


def image_of(
    folder: Path, fill: Callable[[Path], None], *, size_mib: int = 64, options: tuple[str, ...] = ()
) -> Path:
    """An image whose root directory is what `fill` made in an empty folder."""
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


def look(image: Path, request: str) -> str:
    """What debugfs says."""
    result = subprocess.run(["debugfs", "-R", request, image], capture_output=True, check=True)
    return (result.stdout + result.stderr).decode("utf-8", "surrogateescape")


def content(image: Path, path: str) -> bytes:
    """A file's content; `path` is the image's own, `upper` included."""
    return subprocess.run(
        ["debugfs", "-R", f"cat {path}", image], capture_output=True, check=True
    ).stdout


def state(image: Path, path: str) -> tuple[str, int, int, int]:
    """Type, permission bits, uid and gid, in debugfs' words."""
    said = look(image, f"stat {path}")
    inode = re.search(r"Type: ([a-z A-Z]+?) +Mode: +0?([0-7]+)", said)
    owner = re.search(r"User: +(\d+) +Group: +(\d+)", said)
    assert inode is not None, said
    assert owner is not None, said
    return inode[1], int(inode[2], 8) & 0o7777, int(owner[1]), int(owner[2])


def exists(image: Path, path: str) -> bool:
    return "File not found" not in look(image, f"stat {path}")


def names(image: Path, path: str) -> list[str]:
    """The names in a directory, without `.` and `..`."""
    said = look(image, f"ls -p {path}")
    entries = (line.split("/") for line in said.splitlines() if line.startswith("/"))
    found = (fields[5] for fields in entries if fields[1] != "0")  # 0: a free place
    return sorted(name for name in found if name not in {".", ".."})


def assert_clean(image: Path) -> None:
    """A full check by e2fsck finds nothing to mend."""
    result = subprocess.run(
        ["e2fsck", "-fn", image], capture_output=True, text=True, errors="replace", check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr


def debugfs(image: Path, *commands: str) -> None:
    """Change an image. What fails is not told."""
    script = "".join(f"{command}\n" for command in commands).encode()
    argv = ["debugfs", "-w", "-f", "-", image]
    subprocess.run(argv, input=script, capture_output=True, check=False)


def mend(image: Path, *options: str) -> None:
    """Let e2fsck repair what it finds."""
    subprocess.run(["e2fsck", "-fy", *options, image], capture_output=True, check=False)


def used_disk(
    folder: Path,
    fill: Callable[[Path], object] = lambda upper: None,
    *,
    size_mib: int = 64,
    options: tuple[str, ...] = (),
) -> Path:
    """A machine's disk as a guest left it: `fill` makes what is in its upper directory."""

    def tree(root: Path) -> None:
        (root / "upper").mkdir()
        (root / "upper").chmod(0o755)
        (root / "work").mkdir()
        fill(root / "upper")

    return image_of(folder, tree, size_mib=size_mib, options=options)


def codex_folder(upper: Path) -> Path:
    """What Codex makes when it is first used."""
    folder = upper / "root" / ".codex"
    folder.mkdir(parents=True)
    (upper / "root").chmod(0o700)
    return folder
