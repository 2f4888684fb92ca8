"""Builds the guest kernel: the distribution's, uncompressed, with an initramfs.

docs/decisions/ explains the choice of the packaged kernel, and of no compression.
"""

from __future__ import annotations

import asyncio
import gzip
import lzma
import struct
from pathlib import Path

from polydev.hostagent.images import apt, initramfs
from polydev.hostagent.images.build_context import BuildContext
from polydev.hostagent.images.manifest import Ingredients
from polydev.hostagent.images.recipe import Recipe

# Magic bytes of the compression of kernels and modules. Kernels use the legacy lz4 format,
# which the zstd program does not read.
_GZIP = b"\x1f\x8b"
_XZ = b"\xfd7zXZ"
_ZSTD = b"\x28\xb5\x2f\xfd"
_LZ4 = b"\x02\x21\x4c\x18"
_ELF = b"\x7fELF"


async def build_kernel(context: BuildContext, recipe: Recipe, out: Path) -> Ingredients:
    """Write `vmlinux` and `initramfs.cpio` into `out`."""
    context.stage("kernel package")
    name = await apt.real_package(context, recipe.distribution.kernel_package)
    version, package = await apt.download(context, name, context.folder / "kernel")
    unpacked = context.folder / "kernel-unpacked"
    await context.run(["dpkg-deb", "--extract", str(package), str(unpacked)])
    release = next(path.name for path in (unpacked / "lib" / "modules").iterdir())
    context.stage("kernel")
    image = await asyncio.to_thread((unpacked / "boot" / f"vmlinuz-{release}").read_bytes)
    vmlinux = await _decompress(context, compressed_kernel(image))
    if not vmlinux.startswith(_ELF):
        raise context.failed(f"the kernel {release} has an unknown compression")
    await asyncio.to_thread((out / "vmlinux").write_bytes, vmlinux)
    context.stage("initramfs")
    busybox_version, busybox = await _busybox(context)
    modules = await _modules(context, recipe, unpacked, release)
    archive = initramfs.pack(
        (recipe.machine_files / "initramfs-init.sh").read_bytes(),
        (recipe.machine_files / "phases.sh").read_bytes(),
        busybox,
        modules,
    )
    await asyncio.to_thread((out / "initramfs.cpio").write_bytes, archive)
    return Ingredients({"kernel": version}, {"kernel": version, "busybox": busybox_version})


def compressed_kernel(image: bytes) -> bytes:
    """Extract the compressed kernel from a bzImage; empty if it is none.

    Source: the kernel's Documentation/arch/x86/boot.rst, `setup_sects`, `payload_offset` and
    `payload_length`. The last four bytes of the payload are its uncompressed size, not data.
    """
    if image[0x202:0x206] != b"HdrS":
        return b""
    setup_sectors = image[0x1F1] or 4
    offset, length = struct.unpack_from("<II", image, 0x248)
    start = (setup_sectors + 1) * 512 + offset
    return image[start : start + length - 4]


async def _modules(
    context: BuildContext, recipe: Recipe, unpacked: Path, release: str
) -> dict[str, bytes]:
    """Return the contents of the initramfs's modules, in load order."""
    await context.run(["depmod", "--basedir", str(unpacked), release])
    folder = unpacked / "lib" / "modules" / release
    try:
        paths = initramfs.ordered_modules(folder, recipe.modules())
    except KeyError as error:
        raise context.failed(f"the kernel {release} has no module {error.args[0]}") from error
    return {
        path.name.partition(".ko")[0] + ".ko": await _decompress(context, path.read_bytes())
        for path in paths
    }


async def _busybox(context: BuildContext) -> tuple[str, bytes]:
    """Return version and program of the distribution's static busybox."""
    version, package = await apt.download(context, "busybox-static", context.folder / "busybox")
    unpacked = context.folder / "busybox-unpacked"
    await context.run(["dpkg-deb", "--extract", str(package), str(unpacked)])
    program = next(path for path in unpacked.glob("**/bin/busybox") if path.is_file())
    return version, await asyncio.to_thread(program.read_bytes)


async def _decompress(context: BuildContext, data: bytes) -> bytes:
    if data.startswith(_GZIP):
        return await asyncio.to_thread(gzip.decompress, data)
    if data.startswith(_XZ):
        return await asyncio.to_thread(lzma.decompress, data)
    packed, plain = str(context.folder / "packed"), str(context.folder / "plain")
    if data.startswith(_ZSTD):
        command = ["zstd", "--decompress", "--force", "--quiet", "-o", plain, packed]
    elif data.startswith(_LZ4):
        command = ["lz4", "--decompress", "--force", "--quiet", packed, plain]
    else:
        return data
    await asyncio.to_thread(Path(packed).write_bytes, data)
    await context.run(command)
    return await asyncio.to_thread(Path(plain).read_bytes)
