"""Builds the root image of a kind of machine: packages, CLIs, our files, and an ext4 of it all.

`store.py` calls it. Nothing is mounted on the host: mke2fs copies the tree into the image.
"""

from __future__ import annotations

import asyncio
import functools
import os
import shutil
from pathlib import Path

from polydev.hostagent.images import apt, npm, rootfs_files
from polydev.hostagent.images.build_context import Workshop
from polydev.hostagent.images.cache import StageCache
from polydev.hostagent.images.manifest import ImageKind, Ingredients
from polydev.hostagent.images.recipe import Recipe, digest_text

# Documentation and translations are half of a minimal system, and nobody reads them there.
_EXCLUDED = (
    "/usr/share/doc/*",
    "/usr/share/info/*",
    "/usr/share/locale/*",
    "/usr/share/man/*",
)
_INCLUDED = ("/usr/share/doc/*/copyright",)
# What mmdebstrap says as it gets on, and about how far that is.
_BOOTSTRAP_STEPS = {
    "running apt-get update": 0.05,
    "downloading packages with apt": 0.1,
    "extracting archives": 0.3,
    "installing essential packages": 0.35,
    "installing remaining packages": 0.5,
    "cleaning package lists": 0.9,
    "creating tarball": 0.95,
}
_BLOCK = 4096
_INODE = 256
_BASE = "base.tar.zst"
_PACKAGES = "packages"


async def build_rootfs(shop: Workshop, recipe: Recipe, cache: StageCache, out: Path) -> Ingredients:
    """Write `root.img` into `out`."""
    base = await _base(shop, recipe, cache)
    bundles = await _bundles(shop, recipe, cache)
    shop.stage("files")
    root = shop.folder / "root"
    root.mkdir(mode=0o755)
    await shop.run(
        [
            *("tar", "--extract", f"--file={base / _BASE}", f"--directory={root}"),
            *("--numeric-owner", "--xattrs", "--xattrs-include=*"),
        ]
    )
    await asyncio.to_thread(rootfs_files.furnish, root, shop.kind, recipe, bundles)
    if shop.kind is ImageKind.BROWSER:
        await _cache_fonts(shop, root)
    shop.stage("filesystem")
    await _make_filesystem(shop, root, out / "root.img")
    packages = dict(line.split("\t") for line in (base / _PACKAGES).read_text().splitlines())
    versions = npm.versions(recipe, shop.kind)
    if shop.kind is ImageKind.BROWSER:
        versions["chromium"] = packages["chromium"]
    return Ingredients(versions, packages | {f"npm:{key}": v for key, v in versions.items()})


async def _base(shop: Workshop, recipe: Recipe, cache: StageCache) -> Path:
    """A folder with the distribution's tree as a tarball, and the list of what is in it."""
    packages = recipe.packages(shop.kind)
    suite, sources = await apt.sources_list(shop, recipe.distribution)
    key = digest_text("\n".join([suite, sources, *packages, *_EXCLUDED, *_INCLUDED]))[:16]

    async def bootstrap(out: Path) -> None:
        await asyncio.to_thread(out.mkdir)
        (shop.folder / "sources.list").write_text(sources)
        await shop.run(
            [
                # A folder of the store, not /tmp: it is swept with the build, and on its disk.
                *("env", f"TMPDIR={shop.folder}", "mmdebstrap", "--mode=root"),
                *("--variant=minbase", f"--include={','.join(packages)}"),
                *(f"--dpkgopt=path-exclude={path}" for path in _EXCLUDED),
                *(f"--dpkgopt=path-include={path}" for path in _INCLUDED),
                *await apt.inherited_options(shop),
                f"--customize-hook=download /var/lib/dpkg/status {shop.folder}/status",
                *(suite, str(out / _BASE), str(shop.folder / "sources.list")),
            ],
            on_line=lambda line: _note_step(shop, line),
        )
        status = (shop.folder / "status").read_text()
        (out / _PACKAGES).write_text(_installed(status))

    shop.stage("packages", 0.0)
    return await cache.get(f"base-{shop.kind}", key, bootstrap)


def _note_step(shop: Workshop, line: str) -> None:
    for words, fraction in _BOOTSTRAP_STEPS.items():
        if words in line:
            shop.stage("packages", fraction)


def _installed(status: str) -> str:
    """`name<TAB>version` lines of a dpkg status file."""
    rows = []
    for paragraph in status.strip().split("\n\n"):
        fields = dict(line.partition(": ")[::2] for line in paragraph.splitlines())
        rows.append(f"{fields['Package']}\t{fields['Version']}\n")
    return "".join(sorted(rows))


async def _bundles(shop: Workshop, recipe: Recipe, cache: StageCache) -> dict[str, Path]:
    """Folders with the npm packages of this kind of machine, under their bundles' names."""
    shop.stage("clis")
    return {
        name: await cache.get(
            f"npm-{name}",
            npm.cache_key(recipe, name),
            functools.partial(npm.fetch, shop, recipe, name),
        )
        for name in recipe.bundles(shop.kind)
    }


async def _cache_fonts(shop: Workshop, root: Path) -> None:
    """Let the tree's own fontconfig index its fonts: a browser would take long for it, each time.

    The index holds for folders of exactly these times, and the image keeps whole seconds only.
    """
    await asyncio.to_thread(_whole_seconds, root / "usr/share/fonts")
    await asyncio.to_thread(_whole_seconds, root / "usr/local/share/fonts")
    await shop.run(["chroot", str(root), "fc-cache", "--system-only", "--force"])


def _whole_seconds(top: Path) -> None:
    for folder, _, _ in os.walk(top):
        seconds = int(Path(folder).stat().st_mtime)
        os.utime(folder, (seconds, seconds))


async def _make_filesystem(shop: Workshop, root: Path, image: Path) -> None:
    """An ext4 without a journal (it is never written) and just large enough."""
    blocks, inodes = await asyncio.to_thread(_measure, root)
    inodes = inodes * 102 // 100 + 64
    blocks = blocks * 102 // 100 + inodes * _INODE // _BLOCK + 2048
    await shop.run(
        [
            *("mke2fs", "-q", "-t", "ext4", "-b", str(_BLOCK), "-I", str(_INODE), "-m", "0"),
            *("-N", str(inodes), "-O", "^has_journal,^resize_inode,^huge_file"),
            *("-L", f"polydev-{shop.kind}", "-E", "root_owner=0:0"),
            *("-d", str(root), str(image), str(blocks)),
        ]
    )
    await asyncio.to_thread(shutil.rmtree, root)


def _measure(root: Path) -> tuple[int, int]:
    """Blocks and inodes that a tree needs."""
    blocks = inodes = 0
    for folder, folders, files in os.walk(root):
        inodes += len(folders) + len(files)
        blocks += 1 + len(folders)
        for name in files:
            size = (Path(folder) / name).lstat().st_size
            blocks += -(-size // _BLOCK)
    return blocks, inodes
