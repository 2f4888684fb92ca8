"""Files written into a stopped machine's disk: real images, real e2fsprogs, hostile guests."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import ext4_images as images
import pytest
from ext4_images import AUTH, TOKEN, UPPER_AUTH, codex_folder, used_disk

from polydev.hostagent.provisioning.disks import make_disk
from polydev.hostagent.provisioning.offline_files import read_offline, remove_offline, write_offline
from polydev.shared.domain import GuestFile
from polydev.shared.errors import BadPath, ImageInUse, MissingImage, NoSuchFile


@pytest.fixture
async def fresh(tmp_path: Path) -> Path:
    """A new machine's disk: no boot has touched it."""
    disk = tmp_path / "disk.img"
    await make_disk(disk, 256, uid=images.OWNER, cache_dir=tmp_path / "cache")
    return disk


async def test_file_is_written_with_its_parents(fresh: Path) -> None:
    await write_offline(fresh, [GuestFile(AUTH, TOKEN, mode=0o640, uid=5, gid=70000 % 65536)])
    assert images.content(fresh, UPPER_AUTH) == TOKEN
    assert images.state(fresh, UPPER_AUTH) == ("regular", 0o640, 5, 4464)
    assert images.state(fresh, "/upper") == ("directory", 0o755, 0, 0)
    assert images.state(fresh, "/upper/root") == ("directory", 0o700, 0, 0)
    assert images.state(fresh, "/upper/root/.codex") == ("directory", 0o700, 0, 0)
    images.assert_clean(fresh)


async def test_parents_are_created_as_in_the_golden_image(fresh: Path, tmp_path: Path) -> None:
    def fill(root: Path) -> None:
        (root / "etc").mkdir()
        (root / "etc").chmod(0o755)
        (root / "srv").mkdir()
        os.chown(root / "srv", 33, 34)
        (root / "srv").chmod(0o1771)

    (tmp_path / "golden").mkdir()
    golden = images.image_of(tmp_path / "golden", fill)
    files = [GuestFile("/etc/a", b"1"), GuestFile("/srv/b", b"2"), GuestFile("/srv/new/c", b"3")]
    await write_offline(fresh, files, golden=golden)
    assert images.state(fresh, "/upper/etc") == ("directory", 0o755, 0, 0)
    assert images.state(fresh, "/upper/srv") == ("directory", 0o1771, 33, 34)
    assert images.state(fresh, "/upper/srv/new") == ("directory", 0o700, 0, 0)
    images.assert_clean(fresh)


async def test_symlinked_parent_in_the_golden_image_is_refused(fresh: Path, tmp_path: Path) -> None:
    (tmp_path / "golden").mkdir()
    golden = images.image_of(tmp_path / "golden", lambda root: (root / "bin").symlink_to("usr/bin"))
    with pytest.raises(BadPath, match="/bin is not a directory"):
        await write_offline(fresh, [GuestFile("/bin/tool", b"")], golden=golden)
    assert not images.exists(fresh, "/upper/bin")


async def test_existing_file_is_replaced_and_its_space_freed(fresh: Path) -> None:
    await write_offline(fresh, [GuestFile(AUTH, b"x" * 300_000)])
    before = images.inspect(fresh, "show_super_stats -h")
    for length in (0, 1, 5000, 300_000):
        await write_offline(fresh, [GuestFile(AUTH, b"y" * length)])
        assert images.content(fresh, UPPER_AUTH) == b"y" * length
    assert images.names(fresh, "/upper/root/.codex") == ["auth.json"]
    images.assert_clean(fresh)
    free = [line for line in before.splitlines() if line.startswith("Free")]
    assert all(line in images.inspect(fresh, "show_super_stats -h") for line in free)


async def test_if_absent_leaves_visible_files(tmp_path: Path) -> None:
    def fill(upper: Path) -> None:
        folder = codex_folder(upper)
        (folder / "mine").write_bytes(b"mine")
        (folder / "link").symlink_to("nowhere")
        os.mknod(folder / "whiteout", 0o020000, os.makedev(0, 0))

    def golden_fill(root: Path) -> None:
        (codex_folder(root) / "golden").write_bytes(b"golden")

    (tmp_path / "golden").mkdir()
    golden = images.image_of(tmp_path / "golden", golden_fill)
    disk = used_disk(tmp_path, fill)
    names = ("mine", "link", "whiteout", "golden", "absent")
    files = [GuestFile(f"/root/.codex/{name}", TOKEN, if_absent=True) for name in names]
    await write_offline(disk, files, golden=golden)
    assert images.content(disk, "/upper/root/.codex/mine") == b"mine"
    assert images.state(disk, "/upper/root/.codex/link")[0] == "symlink"
    assert images.content(disk, "/upper/root/.codex/whiteout") == TOKEN
    assert not images.exists(disk, "/upper/root/.codex/golden")
    assert images.content(disk, "/upper/root/.codex/absent") == TOKEN


async def test_opaque_directory_hides_files_of_the_golden_image(tmp_path: Path) -> None:
    (tmp_path / "golden").mkdir()
    golden = images.image_of(tmp_path / "golden", lambda root: (codex_folder(root) / "a").touch())
    disk = used_disk(tmp_path, codex_folder)
    images.debugfs(disk, "ea_set /upper/root/.codex trusted.overlay.opaque y")
    await write_offline(disk, [GuestFile("/root/.codex/a", TOKEN, if_absent=True)], golden=golden)
    assert images.content(disk, "/upper/root/.codex/a") == TOKEN


async def test_concurrent_writers_exclude_each_other(fresh: Path) -> None:
    await write_offline(fresh, [GuestFile(AUTH, b"")])
    writers = [write_offline(fresh, [GuestFile(AUTH, TOKEN)]) for _ in range(2)]
    first, second = await asyncio.gather(*writers, return_exceptions=True)
    assert first is None
    assert isinstance(second, ImageInUse)
    assert images.content(fresh, UPPER_AUTH) == TOKEN
    images.assert_clean(fresh)


@pytest.mark.parametrize(
    "path",
    ["", "/", "root/x", "/root//x", "/root/../etc/x", "/root/.", "/root/a b", "/root/a\nb",
     '/root/"x"', "/-w", "/root/<12>", "/root/x/", f"/{'n' * 256}", f"/{'a/' * 600}a", "/röot/x"],
)  # fmt: skip
async def test_unsafe_paths_are_refused(fresh: Path, path: str) -> None:
    for call in (
        write_offline(fresh, [GuestFile("/good", b""), GuestFile(path, b"")]),
        remove_offline(fresh, [path]),
        read_offline(fresh, path, limit_bytes=1),
    ):
        with pytest.raises(BadPath):
            await call
    assert images.names(fresh, "/") == ["lost+found"]


async def test_missing_image_is_named(tmp_path: Path) -> None:
    with pytest.raises(MissingImage, match=r"no-disk\.img"):
        await write_offline(tmp_path / "no-disk.img", [GuestFile(AUTH, TOKEN)])


async def test_file_is_read_up_to_a_limit(fresh: Path) -> None:
    await write_offline(fresh, [GuestFile(AUTH, TOKEN)])
    assert await read_offline(fresh, AUTH, limit_bytes=1000) == TOKEN
    assert await read_offline(fresh, AUTH, limit_bytes=5) == TOKEN[:5]
    assert await read_offline(fresh, AUTH, limit_bytes=len(TOKEN)) == TOKEN
    for path in ("/root/.codex", "/root/none", "/none/none", f"{AUTH}/x"):
        with pytest.raises(NoSuchFile):
            await read_offline(fresh, path, limit_bytes=5)


async def test_removal_of_files_is_idempotent(tmp_path: Path) -> None:
    def fill(upper: Path) -> None:
        (codex_folder(upper) / "auth.json").write_bytes(b"old")
        (upper / "target").write_bytes(b"kept")
        (upper / "link").symlink_to("target")
        os.mknod(upper / "whiteout", 0o020000, os.makedev(0, 0))

    disk = used_disk(tmp_path, fill)
    for _ in range(2):
        await remove_offline(disk, [AUTH, "/link", "/whiteout", "/none", "/target/none"])
    assert images.names(disk, "/upper") == ["root", "target", "whiteout"]
    assert images.names(disk, "/upper/root/.codex") == []
    with pytest.raises(BadPath, match="is a directory"):
        await remove_offline(disk, ["/root"])
    images.assert_clean(disk)
