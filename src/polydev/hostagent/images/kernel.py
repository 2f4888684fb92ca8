"""Builds the guest kernel: the distribution's packaged one, uncompressed, and an initramfs for it.

`store.py` calls it. docs/decisions/ says why the packaged kernel, and why uncompressed.
"""

from __future__ import annotations

import asyncio
import gzip
import lzma
import struct
from pathlib import Path

from polydev.hostagent.images import apt, initramfs
from polydev.hostagent.images.build_context import Workshop
from polydev.hostagent.images.manifest import Ingredients
from polydev.hostagent.images.recipe import Recipe

# How kernels and modules are compressed, by their first bytes. Kernels use the old lz4 format,
# which the zstd program does not read.
_GZIP = b"\x1f\x8b"
_XZ = b"\xfd7zXZ"
_ZSTD = b"\x28\xb5\x2f\xfd"
_LZ4 = b"\x02\x21\x4c\x18"
_ELF = b"\x7fELF"


async def build_kernel(shop: Workshop, recipe: Recipe, out: Path) -> Ingredients:
    """Write `vmlinux` and `initramfs.cpio` into `out`."""
    shop.stage("kernel package")
    name = await apt.real_package(shop, recipe.distribution.kernel_package)
    version, package = await apt.download(shop, name, shop.folder / "kernel")
    unpacked = shop.folder / "kernel-unpacked"
    await shop.run(["dpkg-deb", "--extract", str(package), str(unpacked)])
    release = next(path.name for path in (unpacked / "lib" / "modules").iterdir())
    shop.stage("kernel")
    image = await asyncio.to_thread((unpacked / "boot" / f"vmlinuz-{release}").read_bytes)
    vmlinux = await _decompressed(shop, packed_kernel(image))
    if not vmlinux.startswith(_ELF):
        raise shop.failed(f"the kernel {release} is packed in a way this build does not know")
    await asyncio.to_thread((out / "vmlinux").write_bytes, vmlinux)
    shop.stage("initramfs")
    busybox_version, busybox = await _busybox(shop)
    modules = await _modules(shop, recipe, unpacked, release)
    archive = initramfs.pack(
        (recipe.machine_files / "initramfs-init.sh").read_bytes(),
        (recipe.machine_files / "phases.sh").read_bytes(),
        busybox,
        modules,
    )
    await asyncio.to_thread((out / "initramfs.cpio").write_bytes, archive)
    return Ingredients({"kernel": version}, {"kernel": version, "busybox": busybox_version})


def packed_kernel(image: bytes) -> bytes:
    """The compressed kernel inside a bzImage; nothing, if it is none.

    Source: the kernel's Documentation/arch/x86/boot.rst, `setup_sects`, `payload_offset` and
    `payload_length`. The last four bytes of the payload are its unpacked size, not data.
    """
    if image[0x202:0x206] != b"HdrS":
        return b""
    setup_sectors = image[0x1F1] or 4
    offset, length = struct.unpack_from("<II", image, 0x248)
    start = (setup_sectors + 1) * 512 + offset
    return image[start : start + length - 4]


async def _modules(
    shop: Workshop, recipe: Recipe, unpacked: Path, release: str
) -> dict[str, bytes]:
    """Contents of the modules that the initramfs loads, in order."""
    await shop.run(["depmod", "--basedir", str(unpacked), release])
    folder = unpacked / "lib" / "modules" / release
    try:
        paths = initramfs.modules_in_order(folder, recipe.modules())
    except KeyError as error:
        raise shop.failed(f"the kernel {release} has no module {error.args[0]}") from error
    return {
        path.name.partition(".ko")[0] + ".ko": await _decompressed(shop, path.read_bytes())
        for path in paths
    }


async def _busybox(shop: Workshop) -> tuple[str, bytes]:
    """Version and program of the distribution's static busybox; the host need not have it."""
    version, package = await apt.download(shop, "busybox-static", shop.folder / "busybox")
    unpacked = shop.folder / "busybox-unpacked"
    await shop.run(["dpkg-deb", "--extract", str(package), str(unpacked)])
    program = next(path for path in unpacked.glob("**/bin/busybox") if path.is_file())
    return version, await asyncio.to_thread(program.read_bytes)


async def _decompressed(shop: Workshop, data: bytes) -> bytes:
    if data.startswith(_GZIP):
        return await asyncio.to_thread(gzip.decompress, data)
    if data.startswith(_XZ):
        return await asyncio.to_thread(lzma.decompress, data)
    packed, plain = str(shop.folder / "packed"), str(shop.folder / "plain")
    if data.startswith(_ZSTD):
        command = ["zstd", "--decompress", "--force", "--quiet", "-o", plain, packed]
    elif data.startswith(_LZ4):
        command = ["lz4", "--decompress", "--force", "--quiet", packed, plain]
    else:
        return data
    await asyncio.to_thread(Path(packed).write_bytes, data)
    await shop.run(command)
    return await asyncio.to_thread(Path(plain).read_bytes)
