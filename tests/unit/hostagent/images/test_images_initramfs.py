"""The initramfs: module order, and an archive that other programs read."""

from __future__ import annotations

import lzma
import struct
import subprocess
from pathlib import Path

import pytest

from polydev.hostagent.images.initramfs import ordered_modules, pack
from polydev.hostagent.images.kernel import compressed_kernel


@pytest.fixture
def modules(tmp_path: Path) -> Path:
    (tmp_path / "modules.dep").write_text(
        "kernel/virtio/virtio.ko: kernel/virtio/virtio_ring.ko\n"
        "kernel/virtio/virtio_ring.ko:\n"
        "kernel/net/virtio_net.ko.xz: kernel/net/net_failover.ko.xz kernel/net/failover.ko.xz"
        " kernel/virtio/virtio.ko kernel/virtio/virtio_ring.ko\n"
        "kernel/net/net_failover.ko.xz: kernel/net/failover.ko.xz\n"
        "kernel/net/failover.ko.xz:\n"
        "kernel/char/virtio-rng.ko: kernel/virtio/virtio.ko kernel/virtio/virtio_ring.ko\n"
    )
    (tmp_path / "modules.builtin").write_text("kernel/fs/ext4/ext4.ko\n")
    return tmp_path


def test_modules_follow_their_dependencies_once(modules: Path) -> None:
    ordered = ordered_modules(modules, ["virtio_net", "virtio_rng", "ext4"])
    assert [path.name for path in ordered] == [
        "virtio_ring.ko",
        "virtio.ko",
        "failover.ko.xz",
        "net_failover.ko.xz",
        "virtio_net.ko.xz",
        "virtio-rng.ko",
    ]


def test_missing_module_is_named(modules: Path) -> None:
    with pytest.raises(KeyError, match="overlay"):
        ordered_modules(modules, ["overlay"])


def test_cpio_reads_the_archive(tmp_path: Path) -> None:
    archive = pack(b"#!/bin/sh\n", b"# phases", b"\x7fELF", {"b.ko": b"12345", "a.ko": b""})
    subprocess.run(
        ["cpio", "--extract", "--quiet", "--make-directories"],
        input=archive,
        cwd=tmp_path,
        check=True,
    )
    assert (tmp_path / "init").read_bytes() == b"#!/bin/sh\n"
    assert (tmp_path / "init").stat().st_mode & 0o777 == 0o755
    assert (tmp_path / "bin" / "busybox").read_bytes() == b"\x7fELF"
    loaded = sorted((tmp_path / "modules").iterdir())
    assert [path.name for path in loaded] == ["00-b.ko", "01-a.ko"]
    assert loaded[0].read_bytes() == b"12345"
    assert (tmp_path / "lower").is_dir()


def test_kernel_is_extracted_from_the_boot_image() -> None:
    payload = lzma.compress(b"\x7fELF the kernel")
    head = bytearray(0x400)
    head[0x1F1] = 1
    head[0x202:0x206] = b"HdrS"
    struct.pack_into("<II", head, 0x248, 0x10, len(payload) + 4)
    image = bytes(head) + b"stub".ljust(0x10, b"\0") + payload + struct.pack("<I", 15) + b"rest"
    assert lzma.decompress(compressed_kernel(image)) == b"\x7fELF the kernel"


def test_other_files_hold_no_kernel() -> None:
    assert compressed_kernel(b"\0" * 0x1000) == b""
