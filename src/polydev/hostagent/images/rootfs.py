"""Builds the root image of a kind of machine: packages, CLIs, guest files, an ext4.

Nothing is mounted on the host: mke2fs copies the tree into the image.
"""

from __future__ import annotations

import asyncio
import functools
import os
import shutil
from pathlib import Path

from polydev.hostagent.images import apt, npm, rootfs_files
from polydev.hostagent.images.build_context import BuildContext
from polydev.hostagent.images.cache import StageCache
from polydev.hostagent.images.manifest import ImageKind, Ingredients
from polydev.hostagent.images.recipe import Recipe, digest_text

# Documentation and translations are half of a minimal system, and unused in machines.
_EXCLUDED = (
    "/usr/share/doc/*",
    "/usr/share/info/*",
    "/usr/share/locale/*",
    "/usr/share/man/*",
)
_INCLUDED = ("/usr/share/doc/*/copyright",)
# mmdebstrap's progress messages, and the progress that each stands for.
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


async def build_rootfs(
    context: BuildContext, recipe: Recipe, cache: StageCache, out: Path
) -> Ingredients:
    """Write `root.img` into `out`."""
    base = await _base(context, recipe, cache)
    bundles = await _bundles(context, recipe, cache)
    context.stage("files")
    root = context.folder / "root"
    root.mkdir(mode=0o755)
    await context.run(
        [
            *("tar", "--extract", f"--file={base / _BASE}", f"--directory={root}"),
            *("--numeric-owner", "--xattrs", "--xattrs-include=*"),
        ]
    )
    await asyncio.to_thread(rootfs_files.populate, root, context.kind, recipe, bundles)
    if context.kind is ImageKind.BROWSER:
        await _index_fonts(context, root)
    context.stage("filesystem")
    await _make_filesystem(context, root, out / "root.img")
    packages = dict(line.split("\t") for line in (base / _PACKAGES).read_text().splitlines())
    versions = npm.versions(recipe, context.kind)
    if context.kind is ImageKind.BROWSER:
        versions["chromium"] = packages["chromium"]
    return Ingredients(versions, packages | {f"npm:{key}": v for key, v in versions.items()})


async def _base(context: BuildContext, recipe: Recipe, cache: StageCache) -> Path:
    """Return a folder with the distribution's tarball and its package list."""
    packages = recipe.packages(context.kind)
    suite, sources = await apt.sources_list(context, recipe.distribution)
    key = digest_text("\n".join([suite, sources, *packages, *_EXCLUDED, *_INCLUDED]))[:16]

    async def bootstrap(out: Path) -> None:
        await asyncio.to_thread(out.mkdir)
        (context.folder / "sources.list").write_text(sources)
        await context.run(
            [
                # In the build's folder, not /tmp: on the store's disk, and removed with the build.
                *("env", f"TMPDIR={context.folder}", "mmdebstrap", "--mode=root"),
                *("--variant=minbase", f"--include={','.join(packages)}"),
                *(f"--dpkgopt=path-exclude={path}" for path in _EXCLUDED),
                *(f"--dpkgopt=path-include={path}" for path in _INCLUDED),
                *await apt.inherited_options(context),
                f"--customize-hook=download /var/lib/dpkg/status {context.folder}/status",
                *(suite, str(out / _BASE), str(context.folder / "sources.list")),
            ],
            on_line=lambda line: _report_step(context, line),
        )
        status = (context.folder / "status").read_text()
        (out / _PACKAGES).write_text(_installed(status))

    context.stage("packages", 0.0)
    return await cache.get(f"base-{context.kind}", key, bootstrap)


def _report_step(context: BuildContext, line: str) -> None:
    for message, fraction in _BOOTSTRAP_STEPS.items():
        if message in line:
            context.stage("packages", fraction)


def _installed(status: str) -> str:
    """Convert a dpkg status file to `name<TAB>version` lines."""
    rows = []
    for paragraph in status.strip().split("\n\n"):
        fields = dict(line.partition(": ")[::2] for line in paragraph.splitlines())
        rows.append(f"{fields['Package']}\t{fields['Version']}\n")
    return "".join(sorted(rows))


async def _bundles(context: BuildContext, recipe: Recipe, cache: StageCache) -> dict[str, Path]:
    """Return the folders of this kind's npm packages, by bundle."""
    context.stage("clis")
    return {
        name: await cache.get(
            f"npm-{name}",
            npm.cache_key(recipe, name),
            functools.partial(npm.fetch, context, recipe, name),
        )
        for name in recipe.bundles(context.kind)
    }


async def _index_fonts(context: BuildContext, root: Path) -> None:
    """Index the fonts with the tree's own fontconfig, which would slow down every browser.

    The index is valid for folders with exactly these times, and the image stores whole seconds.
    """
    await asyncio.to_thread(_truncate_times, root / "usr/share/fonts")
    await asyncio.to_thread(_truncate_times, root / "usr/local/share/fonts")
    await context.run(["chroot", str(root), "fc-cache", "--system-only", "--force"])


def _truncate_times(top: Path) -> None:
    for folder, _, _ in os.walk(top):
        seconds = int(Path(folder).stat().st_mtime)
        os.utime(folder, (seconds, seconds))


async def _make_filesystem(context: BuildContext, root: Path, image: Path) -> None:
    """Build an ext4 without a journal (it is read-only), of minimal size."""
    blocks, inodes = await asyncio.to_thread(_measure, root)
    inodes = inodes * 102 // 100 + 64
    blocks = blocks * 102 // 100 + inodes * _INODE // _BLOCK + 2048
    await context.run(
        [
            *("mke2fs", "-q", "-t", "ext4", "-b", str(_BLOCK), "-I", str(_INODE), "-m", "0"),
            *("-N", str(inodes), "-O", "^has_journal,^resize_inode,^huge_file"),
            *("-L", f"polydev-{context.kind}", "-E", "root_owner=0:0"),
            *("-d", str(root), str(image), str(blocks)),
        ]
    )
    await asyncio.to_thread(shutil.rmtree, root)


def _measure(root: Path) -> tuple[int, int]:
    """Count the blocks and inodes of a tree."""
    blocks = inodes = 0
    for folder, folders, files in os.walk(root):
        inodes += len(folders) + len(files)
        blocks += 1 + len(folders)
        for name in files:
            size = (Path(folder) / name).lstat().st_size
            blocks += -(-size // _BLOCK)
    return blocks, inodes
