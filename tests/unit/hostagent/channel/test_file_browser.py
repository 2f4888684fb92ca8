"""The file browser, against a real file system and hostile guests."""

from __future__ import annotations

import asyncio
import os
import socket
import sys
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import asyncssh
import pytest

from polydev.hostagent.channel import Channel, ChannelLimits, sftp_dirs
from polydev.hostagent.channel.file_browser import FileBrowser
from polydev.hostagent.channel.sftp_dirs import validated, validated_new
from polydev.shared.errors import (
    AlreadyExists,
    BadPath,
    ChannelLost,
    FileRefused,
    GuestMisbehaved,
    NoSuchFile,
    TooLarge,
)

KEY = asyncssh.generate_private_key("ssh-ed25519")
LIMITS = ChannelLimits(connect_s=5, open_s=30, files_s=30)
MOST = 1024 * 1024


class Sftp(asyncssh.SFTPServer):
    """A guest's SFTP server; tests change its behaviour."""


class _NoAuthServer(asyncssh.SSHServer):
    def begin_auth(self, username: str) -> bool:
        return False


@pytest.fixture
def server() -> type[asyncssh.SFTPServer]:
    """The SFTP server in the guest's place."""
    return Sftp


@pytest.fixture
async def files(tmp_path: Path, server: type[asyncssh.SFTPServer]) -> AsyncIterator[FileBrowser]:
    tasks: list[asyncio.Task[None]] = []

    async def serve(sock: socket.socket) -> None:
        connection = await asyncssh.run_server(
            sock,
            server_factory=_NoAuthServer,
            server_host_keys=[KEY],
            sftp_factory=lambda chan: server(chan, chroot=os.fsencode(tmp_path)),
            encoding=None,
        )
        await connection.wait_closed()

    async def dial() -> socket.socket:
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        theirs.setblocking(False)
        tasks.append(asyncio.create_task(serve(theirs)))
        return ours

    public, private = KEY.export_public_key().decode(), KEY.export_private_key().decode()
    channel = Channel(dial, public, private, LIMITS)
    yield channel.file_browser()
    await channel.close()
    await asyncio.gather(*tasks, return_exceptions=True)


async def pieces(*parts: bytes) -> AsyncIterator[bytes]:
    for part in parts:
        yield part


async def content_of(files: FileBrowser, path: bytes, most: int = MOST) -> bytes:
    download = await files.download(path, most)
    try:
        return b"".join([piece async for piece in download])
    finally:
        await download.aclose()


@pytest.mark.parametrize(
    "path", [b"", b"a", b"a/b", b"/a/", b"/a//b", b"//a", b"/a/../b", b"/./a", b"/a\0", b"/" * 2000]
)
def test_invalid_path_is_refused(path: bytes) -> None:
    with pytest.raises(BadPath):
        validated(path)


@pytest.mark.parametrize(
    "path",
    [b"/", b"/a\nb", b"/a\x1b[2J", "/a\u202eb".encode(), b"/\xff", b"/ ", b"/" + b"a" * 256],
)
def test_new_names_must_be_printable(path: bytes) -> None:
    with pytest.raises(BadPath):
        validated_new(path)
    assert validated_new("/root/Grüße & co.txt".encode())


async def test_file_round_trips(files: FileBrowser, tmp_path: Path) -> None:
    parts = [os.urandom(100_000) for _ in range(9)]
    assert await files.upload(b"/new", pieces(*parts), MOST, replace=False) == 900_000
    assert (tmp_path / "new").read_bytes() == b"".join(parts)
    assert await content_of(files, b"/new") == b"".join(parts)
    assert await files.upload(b"/empty", pieces(), MOST, replace=False) == 0
    assert await content_of(files, b"/empty") == b""


async def test_existing_file_is_replaced_only_on_request(
    files: FileBrowser, tmp_path: Path
) -> None:
    there = tmp_path / "there"
    there.write_bytes(b"old")
    there.chmod(0o750)
    with pytest.raises(AlreadyExists):
        await files.upload(b"/there", pieces(b"new"), MOST, replace=False)
    assert there.read_bytes() == b"old"
    await files.upload(b"/there", pieces(b"new"), MOST, replace=True)
    assert there.read_bytes() == b"new"
    assert there.stat().st_mode & 0o777 == 0o750
    (tmp_path / "link").symlink_to(there)
    await files.upload(b"/link", pieces(b"mine"), MOST, replace=True)
    assert not (tmp_path / "link").is_symlink()
    assert there.read_bytes() == b"new"
    (tmp_path / "folder").mkdir()
    with pytest.raises(FileRefused):
        await files.upload(b"/folder", pieces(b"x"), MOST, replace=True)


async def test_failed_upload_leaves_nothing(files: FileBrowser, tmp_path: Path) -> None:
    async def broken() -> AsyncIterator[bytes]:
        yield b"x" * 600_000
        raise ChannelLost("the sender has disconnected")

    with pytest.raises(ChannelLost):
        await files.upload(b"/broken", broken(), MOST, replace=False)
    with pytest.raises(TooLarge):
        await files.upload(b"/large", pieces(b"x" * 600_000, b"x" * 600_000), MOST, replace=False)
    with pytest.raises(NoSuchFile):
        await files.upload(b"/no/folder", pieces(b"x"), MOST, replace=False)
    assert list(tmp_path.iterdir()) == []


async def test_download_requires_a_regular_file_within_the_limit(
    files: FileBrowser, tmp_path: Path
) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    with (tmp_path / "sparse").open("wb") as file:
        file.truncate(1 << 40)
    for path in (b"/pipe", b"/folder"):
        with pytest.raises(BadPath):
            await content_of(files, path)
    with pytest.raises(FileRefused):
        await content_of(files, b"/sparse")
    with pytest.raises(NoSuchFile):
        await content_of(files, b"/nothing")


async def test_file_that_changes_during_the_download(files: FileBrowser, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"a" * 900_000)
    download = await files.download(b"/file", MOST)
    path.write_bytes(b"b" * 2_000_000)
    assert len(b"".join([piece async for piece in download])) == 900_000
    await download.aclose()
    path.write_bytes(b"a" * 900_000)
    download = await files.download(b"/file", MOST)
    os.truncate(path, 10)
    with pytest.raises(GuestMisbehaved):
        _ = [piece async for piece in download]
    await download.aclose()


async def test_names_of_any_bytes_are_listed_and_usable(files: FileBrowser, tmp_path: Path) -> None:
    names = [b"two\nlines", b"\x1b[2J", b"\xff\xfe", "\u202e".encode(), b"a" * 255, b" ", b"-rf"]
    for name in names:
        (tmp_path / os.fsdecode(name)).write_bytes(name)
    entries, more = await files.entries(b"/")
    assert not more
    assert sorted(entry.name for entry in entries) == sorted(names)
    (tmp_path / "in").mkdir()
    for number, name in enumerate(names):
        assert await content_of(files, b"/" + name) == name
        (tmp_path / os.fsdecode(name)).rename(tmp_path / "in" / os.fsdecode(name))
        await files.move(b"/in/" + name, b"/in/plain-%d" % number)
        await files.remove(b"/in/plain-%d" % number, with_content=False)
    assert list((tmp_path / "in").iterdir()) == []


async def test_huge_folder_is_truncated(
    files: FileBrowser, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sftp_dirs, "MAX_ENTRIES", 150)
    for number in range(300):
        (tmp_path / f"file-{number}").touch()
    entries, more = await files.entries(b"/")
    assert len(entries) == 150
    assert more
    with pytest.raises(BadPath):
        await files.entries(b"/file-1")


async def test_folders_are_created_moved_and_removed(files: FileBrowser, tmp_path: Path) -> None:
    (tmp_path / "root").mkdir()
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "kept").touch()
    await files.make_folder(b"/root/made")
    with pytest.raises(AlreadyExists):
        await files.make_folder(b"/root/made")
    deep = tmp_path / "root" / "made" / "/".join(["d"] * 40)
    deep.mkdir(parents=True)
    (deep / "leaf").touch()
    (tmp_path / "root" / "made" / "link").symlink_to("../../outside")
    with pytest.raises(FileRefused):
        await files.remove(b"/root/made", with_content=False)
    await files.move(b"/root/made", b"/root/moved")
    with pytest.raises(AlreadyExists):
        await files.move(b"/outside/kept", b"/root/moved")
    await files.remove(b"/root/moved", with_content=True)
    assert list((tmp_path / "root").iterdir()) == []
    assert (outside / "kept").exists()  # a symlink is removed, not followed
    for top in (b"/", b"/root"):
        with pytest.raises(BadPath):
            await files.remove(top, with_content=True)
        with pytest.raises(BadPath):
            await files.move(top, b"/outside/x")


class Lying(asyncssh.SFTPServer):
    """Reports impossible names and numbers."""

    async def scandir(self, path: bytes) -> AsyncIterator[asyncssh.SFTPName]:
        for name in (b".", b"..", b"", b"a/b", b"../../etc", b"x" * 5000, b"a\0b", b"good"):
            attributes = asyncssh.SFTPAttrs(permissions=0o100644, size=2**64 - 1, mtime=2**32 - 1)
            yield asyncssh.SFTPName(name, attrs=attributes)


class TestLying:
    @pytest.fixture
    def server(self) -> type[asyncssh.SFTPServer]:
        return Lying

    async def test_impossible_entries_are_skipped_and_bounded(self, files: FileBrowser) -> None:
        [entry], _ = await files.entries(b"/")
        assert entry.name == b"good"
        assert entry.size == 2**53 - 1
        assert entry.kind == "file"


class Endless(asyncssh.SFTPServer):
    """Lists an endless folder of impossible names."""

    async def scandir(self, path: bytes) -> AsyncIterator[asyncssh.SFTPName]:
        while True:
            yield asyncssh.SFTPName(b".", attrs=asyncssh.SFTPAttrs(permissions=0o40755))


class TestEndless:
    @pytest.fixture
    def server(self) -> type[asyncssh.SFTPServer]:
        return Endless

    @pytest.mark.parametrize("removes", [False, True])
    async def test_endless_folder_of_impossible_names_is_bounded(
        self, files: FileBrowser, tmp_path: Path, removes: bool
    ) -> None:
        (tmp_path / "root" / "a").mkdir(parents=True)
        work = files.remove(b"/root/a", with_content=True) if removes else files.entries(b"/")
        with pytest.raises(GuestMisbehaved):
            await work


class Silent(asyncssh.SFTPServer):
    """Never answers a read."""

    async def read(self, file_obj: object, offset: int, size: int) -> bytes:
        await asyncio.Event().wait()
        return b""


class TestSilent:
    @pytest.fixture
    def server(self, monkeypatch: pytest.MonkeyPatch) -> type[asyncssh.SFTPServer]:
        monkeypatch.setattr(sys.modules[__name__], "LIMITS", replace(LIMITS, files_s=2))
        return Silent

    async def test_silent_guest_times_out(self, files: FileBrowser, tmp_path: Path) -> None:
        (tmp_path / "file").write_bytes(b"x")
        with pytest.raises(ChannelLost, match="does not answer"):
            await content_of(files, b"/file")
