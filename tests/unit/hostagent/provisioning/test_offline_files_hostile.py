"""Files written into a stopped machine's disk: traps of a hostile guest."""

from __future__ import annotations

import asyncio
import os
import secrets
import tempfile
from pathlib import Path
from typing import Any

import ext4_images as images
import pytest
from ext4_images import AUTH, TOKEN, UPPER_AUTH, codex_folder, used_disk

from polydev.hostagent.provisioning import ext4_image
from polydev.hostagent.provisioning.disks import make_disk
from polydev.hostagent.provisioning.offline_files import read_offline, write_offline
from polydev.hostagent.system.sandbox import tool
from polydev.shared.domain import GuestFile
from polydev.shared.errors import DiskFull, NoSuchFile


@pytest.fixture
async def fresh(tmp_path: Path) -> Path:
    """A new machine's disk: no boot has touched it."""
    disk = tmp_path / "disk.img"
    await make_disk(disk, 256, uid=images.OWNER, cache_dir=tmp_path / "cache")
    return disk


async def test_symlink_is_replaced_and_its_target_untouched(
    tmp_path: Path,
) -> None:
    def fill(upper: Path) -> None:
        (upper / "etc").mkdir()
        (upper / "etc" / "passwd").write_bytes(b"root")
        (codex_folder(upper) / "auth.json").symlink_to("/upper/etc/passwd")

    disk = used_disk(tmp_path, fill)
    await write_offline(disk, [GuestFile(AUTH, TOKEN)])
    assert images.state(disk, UPPER_AUTH) == ("regular", 0o600, 0, 0)
    assert images.content(disk, UPPER_AUTH) == TOKEN
    assert images.content(disk, "/upper/etc/passwd") == b"root"
    images.assert_clean(disk)


@pytest.mark.parametrize("planted", ["/upper/etc", "../etc", "/upper/root/.codex", "."])
@pytest.mark.parametrize("folder", ["root", "root/.codex"])
async def test_symlink_in_the_path_is_not_followed(
    tmp_path: Path, folder: str, planted: str
) -> None:
    def fill(upper: Path) -> None:
        (upper / "etc").mkdir()
        (upper / folder).parent.mkdir(exist_ok=True)
        (upper / folder).symlink_to(planted)

    disk = used_disk(tmp_path, fill)
    await write_offline(disk, [GuestFile(AUTH, TOKEN)])
    assert images.state(disk, f"/upper/{folder}") == ("directory", 0o700, 0, 0)
    assert images.content(disk, UPPER_AUTH) == TOKEN
    assert images.names(disk, "/upper/etc") == []
    assert 'trusted.overlay.opaque (1) = "y"' in images.inspect(disk, f"ea_list /upper/{folder}")
    images.assert_clean(disk)


async def test_symlink_in_place_of_the_upper_directory_is_not_followed(tmp_path: Path) -> None:
    def fill(root: Path) -> None:
        (root / "elsewhere").mkdir()
        (root / "upper").symlink_to("elsewhere")

    disk = images.image_of(tmp_path, fill)
    await write_offline(disk, [GuestFile(AUTH, TOKEN)])
    assert images.names(disk, "/elsewhere") == []
    assert images.content(disk, UPPER_AUTH) == TOKEN
    images.assert_clean(disk)


async def test_whiteouts_files_and_devices_in_the_way_are_removed(tmp_path: Path) -> None:
    def fill(upper: Path) -> None:
        (upper / "root").mkdir()
        os.mknod(upper / "root" / ".codex", 0o020000, os.makedev(0, 0))
        (upper / "root" / ".claude").write_bytes(b"x" * 10_000)
        (upper / "root" / ".gemini").mkdir()
        os.mkfifo(upper / "root" / ".gemini" / "oauth_creds.json")
        os.mknod(upper / "root" / ".claude.json", 0o060000, os.makedev(254, 0))

    disk = used_disk(tmp_path, fill)
    paths = (AUTH, "/root/.claude/.credentials.json", "/root/.gemini/oauth_creds.json")
    await write_offline(disk, [GuestFile(path, TOKEN) for path in (*paths, "/root/.claude.json")])
    for path in (*paths, "/root/.claude.json"):
        assert images.content(disk, f"/upper{path}") == TOKEN
    images.assert_clean(disk)


async def test_directory_in_place_of_the_file_stays_beside_it(tmp_path: Path) -> None:
    def fill(upper: Path) -> None:
        (codex_folder(upper) / "auth.json" / "deep").mkdir(parents=True)
        (upper / "root/.codex/auth.json/deep/file").write_bytes(b"kept")

    disk = used_disk(tmp_path, fill)
    await write_offline(disk, [GuestFile(AUTH, TOKEN)])
    assert images.content(disk, UPPER_AUTH) == TOKEN
    retained, name = images.names(disk, "/upper/root/.codex")
    assert name == "auth.json"
    assert retained.endswith("-auth.json")
    assert images.content(disk, f"/upper/root/.codex/{retained}/deep/file") == b"kept"
    images.assert_clean(disk)


async def test_hard_link_is_separated_from_its_other_name(tmp_path: Path) -> None:
    def fill(upper: Path) -> None:
        (codex_folder(upper) / "auth.json").write_bytes(b"old")
        os.link(upper / "root/.codex/auth.json", upper / "other")

    disk = used_disk(tmp_path, fill)
    await write_offline(disk, [GuestFile(AUTH, TOKEN)])
    assert images.content(disk, "/upper/other") == b"old"
    images.assert_clean(disk)


async def test_names_and_targets_that_look_like_commands_do_nothing(tmp_path: Path) -> None:
    def fill(upper: Path) -> None:
        folder = codex_folder(upper)
        for name in ('a"\nrm auth.json\n', "-w", "<2>", "a;b", "debugfs: stat auth.json", "\xff\t"):
            (folder / name).write_bytes(b"odd")
        forged = "\nInode: 2   Type: directory    Mode:  0777   Flags: 0x0\ndebugfs: mark\n"
        (folder / "auth.json").symlink_to(forged[:59])
        (upper / "root" / ".claude").symlink_to(forged)

    disk = used_disk(tmp_path, fill)
    before = len(images.inspect(disk, "ls -p /upper/root/.codex"))
    files = [GuestFile(AUTH, TOKEN), GuestFile("/root/.claude/.credentials.json", TOKEN)]
    await write_offline(disk, files)
    assert images.content(disk, UPPER_AUTH) == TOKEN
    assert images.content(disk, "/upper/root/.claude/.credentials.json") == TOKEN
    assert abs(len(images.inspect(disk, "ls -p /upper/root/.codex")) - before) < 20
    images.assert_clean(disk)


async def test_large_directory_keeps_all_entries(tmp_path: Path) -> None:
    count = 2000

    def fill(upper: Path) -> None:
        folder = codex_folder(upper)
        for number in range(count):
            (folder / f"{number:05d}-{'n' * 40}").touch()

    disk = used_disk(tmp_path, fill, size_mib=256)
    # mke2fs fills directories without a hash tree; e2fsck -D gives them one, as a kernel would.
    images.repair(disk, "-D")
    assert "hash" in images.inspect(disk, "htree_dump /upper/root/.codex").lower()
    for content in (TOKEN, TOKEN * 2):
        await write_offline(disk, [GuestFile(AUTH, content)])
        assert images.content(disk, UPPER_AUTH) == content
    assert len(images.names(disk, "/upper/root/.codex")) == count + 1
    images.assert_clean(disk)


@pytest.mark.parametrize("name", ["n" * 255, "n" * 200, "n" * 199, "n"])
async def test_names_of_any_length_fit_into_a_full_directory_block(
    tmp_path: Path, name: str
) -> None:
    def fill(upper: Path) -> None:
        folder = codex_folder(upper)
        for number in range(60):
            (folder / f"{number:03d}{'x' * 47}").touch()

    disk = used_disk(tmp_path, fill)
    for content in (TOKEN, b""):
        await write_offline(disk, [GuestFile(f"/root/.codex/{name}", content)])
    assert images.content(disk, f"/upper/root/.codex/{name}") == b""
    assert len(images.names(disk, "/upper/root/.codex")) == 61
    images.assert_clean(disk)


@pytest.mark.parametrize("fill_with", ["blocks", "inodes"])
async def test_full_disk_is_reported_and_keeps_its_files(tmp_path: Path, fill_with: str) -> None:
    def fill(upper: Path) -> None:
        (codex_folder(upper) / "auth.json").write_bytes(b"old")

    options = ("-m", "0", "-O", "^has_journal", "-N", "64")
    disk = used_disk(tmp_path, fill, size_mib=4, options=options)
    source = tmp_path / "zeros"
    source.write_bytes(secrets.token_bytes(4 << 20) if fill_with == "blocks" else b"")
    images.debugfs(disk, *(f"write {source} /big{number}" for number in range(64)))
    images.repair(disk)
    with pytest.raises(DiskFull, match="is full"):
        await write_offline(disk, [GuestFile(AUTH, TOKEN * 1000)])
    with pytest.raises(DiskFull, match="is full"):
        await write_offline(disk, [GuestFile("/var/new/file", TOKEN * 1000)])
    assert images.content(disk, UPPER_AUTH) == b"old"
    assert images.names(disk, "/upper/root/.codex") == ["auth.json"]
    images.assert_clean(disk)


async def test_read_does_not_follow_a_symlink(tmp_path: Path) -> None:
    def fill(upper: Path) -> None:
        (upper / "secret").write_bytes(b"secret")
        (codex_folder(upper) / "auth.json").symlink_to("/upper/secret")

    with pytest.raises(NoSuchFile):
        await read_offline(used_disk(tmp_path, fill), AUTH, limit_bytes=5)


async def test_tools_run_unprivileged_without_the_secret_in_arguments(
    fresh: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Replace each tool by a script that reports its call, then runs the tool."""
    begun: list[str] = []
    begin = asyncio.create_subprocess_exec

    async def noted(*argv: str, **how: Any) -> asyncio.subprocess.Process:
        begun.append(repr((argv, how["env"])))
        return await begin(*argv, **how)

    with tempfile.TemporaryDirectory(
        prefix="pdt-"
    ) as name:  # the user nobody cannot enter pytest's own folder
        folder = Path(name)
        folder.chmod(0o777)

        def logged(tool_name: str, package: str) -> str:
            script = folder / tool_name
            what = "cat /proc/$$/status /proc/$$/cmdline /proc/$$/environ"
            became = f'exec {tool(tool_name, package)} "$@"'
            script.write_text(f"#!/bin/sh\n{what} >{folder}/{tool_name}.$$\n{became}\n")
            script.chmod(0o755)
            return str(script)

        monkeypatch.setattr(ext4_image, "tool", logged)
        monkeypatch.setattr(asyncio, "create_subprocess_exec", noted)
        await write_offline(fresh, [GuestFile(AUTH, TOKEN)])
        assert await read_offline(fresh, AUTH, limit_bytes=10_000) == TOKEN
        seen = [path.read_bytes() for path in folder.glob("*.*")]
        assert {path.stem for path in folder.glob("*.*")} == {"debugfs", "e2fsck"}
    assert len(begun) == len(seen)
    assert TOKEN[10:-2].decode() not in "".join(begun)
    for arguments in seen:
        assert TOKEN[10:-2] not in arguments
        assert b"Uid:\t%d\t%d\t%d" % ((images.OWNER,) * 3) in arguments
        assert b"CapBnd:\t0000000000000000" in arguments
        assert b"NoNewPrivs:\t1" in arguments
