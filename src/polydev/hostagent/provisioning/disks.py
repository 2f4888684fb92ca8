"""Machine disks: sparse ext4 images, copied from an empty template.

mke2fs runs once per size. A new disk then takes a few milliseconds and two megabytes, and grows as
the guest writes. Every copy has the template's filesystem UUID, which is safe: a machine has one
such disk and mounts it by its device, and the host never mounts any.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from polydev.hostagent.system.cancellation import run_in_thread_shielded
from polydev.hostagent.system.disk_full import raising_disk_full
from polydev.hostagent.system.sandbox import tool
from polydev.shared.errors import ImageDamaged

_MKFS_LIMIT_S = 60
# The inode tables of a sparse file read as zeros: mke2fs records that, so the guest does not write
# 64 MiB of zeros in the background. Only root writes, so no blocks are reserved.
_MKFS_OPTIONS = ("-t", "ext4", "-m", "0", "-E", "lazy_journal_init=1,root_owner=0:0")
_BLOCK = 64 * 1024


async def make_disk(path: Path, size_mib: int, *, uid: int, cache_dir: Path) -> None:
    """Create an empty disk atomically, 0600 and owned by `uid`.

    An existing disk stays as it is. The template is cached in `cache_dir`.
    Raises: DiskFull, MissingTool, ImageDamaged if mke2fs fails.
    """
    await run_in_thread_shielded(_make_disk, path, size_mib, uid, cache_dir)


async def copy_disk(source: Path, path: Path, *, uid: int) -> None:
    """Copy a disk atomically, 0600 and owned by `uid`.

    Nothing may write to `source` at the same time. Raises: DiskFull, OSError.
    """
    await run_in_thread_shielded(_copy_disk, source, path, uid)


def _make_disk(path: Path, size_mib: int, uid: int, cache_dir: Path) -> None:
    if path.exists():
        return
    with raising_disk_full(path.parent):
        template = _template(size_mib, cache_dir)
    _copy_disk(template, path, uid)


def _copy_disk(source: Path, path: Path, uid: int) -> None:
    with raising_disk_full(path.parent):
        temporary = path.with_name(f".{path.name}.new")
        try:
            _copy_sparse(source, temporary)
            os.chown(temporary, uid, uid)
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


def _template(size_mib: int, cache_dir: Path) -> Path:
    """Return an empty filesystem of that size from this host's mke2fs."""
    mkfs = tool("mke2fs", "e2fsprogs")
    template = cache_dir / f"disk-{size_mib}m-{_mkfs_id(mkfs)}.img"
    if template.exists():
        return template
    cache_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    with _locked(cache_dir):  # one process at a time creates it; the others find it finished
        if template.exists():
            return template
        temporary = template.with_suffix(".new")
        with temporary.open("wb") as file:
            file.truncate(size_mib << 20)
            _run_mkfs([mkfs, "-q", *_MKFS_OPTIONS, str(temporary)])
            os.fsync(file.fileno())
        temporary.replace(template)
    return template


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold the lock of a folder, among threads and processes."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _run_mkfs(argv: list[str]) -> None:
    result = subprocess.run(argv, capture_output=True, timeout=_MKFS_LIMIT_S, check=False)
    if result.returncode != 0:
        errors = result.stderr.decode("utf-8", "replace").strip()[-500:]
        if "No space left" in errors:
            raise OSError(errno.ENOSPC, errors)
        raise ImageDamaged(f"mke2fs could not create an empty disk: {errors}")


def _mkfs_id(mkfs: str) -> str:
    """Identify mke2fs, its defaults and our options."""
    state = Path(mkfs).stat()
    parts = [f"{state.st_size}:{state.st_mtime_ns}", *_MKFS_OPTIONS]
    config = Path("/etc/mke2fs.conf")
    if config.exists():
        parts.append(config.read_text("utf-8", "replace"))
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:12]


def _copy_sparse(source: Path, target: Path) -> None:
    """Copy the data; holes and blocks of zeros become holes."""
    flags = os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
    with source.open("rb") as reader, os.fdopen(os.open(target, flags, 0o600), "r+b") as writer:
        os.ftruncate(writer.fileno(), os.fstat(reader.fileno()).st_size)
        end = 0
        while (extent := _next_data(reader.fileno(), end)) is not None:
            start, end = extent
            for position in range(start, end, _BLOCK):
                block = os.pread(reader.fileno(), min(_BLOCK, end - position), position)
                if block.count(0) != len(block):
                    os.pwrite(writer.fileno(), block, position)


def _next_data(descriptor: int, position: int) -> tuple[int, int] | None:
    try:
        start = os.lseek(descriptor, position, os.SEEK_DATA)
    except OSError as error:
        if error.errno == errno.ENXIO:
            return None
        raise
    return start, os.lseek(descriptor, start, os.SEEK_HOLE)
