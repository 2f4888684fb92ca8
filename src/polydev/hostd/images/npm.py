"""Fetches the real CLIs from the npm registry, at the versions and checksums of the lock file.

`rootfs.py` calls it. No script of a package runs on the host.
"""

from __future__ import annotations

import asyncio
import json
import shutil
from dataclasses import dataclass
from pathlib import Path

from polydev.hostd.images.recipe import Recipe, digest_file
from polydev.hostd.images.workshop import Workshop


@dataclass(frozen=True, slots=True)
class Cli:
    """A CLI's native program in its npm package, and the command it becomes."""

    command: str
    package: str
    program: str
    version_key: str


CLIS = (
    Cli(
        command="claude",
        package="@anthropic-ai/claude-code-linux-x64",
        program="claude",
        version_key="claude_code",
    ),
    Cli(
        command="codex",
        package="@openai/codex-linux-x64",
        program="vendor/x86_64-unknown-linux-musl/bin/codex",
        version_key="codex",
    ),
)


def cache_key(recipe: Recipe) -> str:
    """Names what `fetch` would fetch."""
    return digest_file(recipe.clis / "package-lock.json")[:16]


def versions(recipe: Recipe) -> dict[str, str]:
    """The CLIs' versions as the lock file has them."""
    lock = json.loads((recipe.clis / "package-lock.json").read_text())
    return {
        cli.version_key: lock["packages"][f"node_modules/{cli.package}"]["version"].removesuffix(
            "-linux-x64"
        )
        for cli in CLIS
    }


async def fetch(shop: Workshop, recipe: Recipe, out: Path) -> None:
    """Install the locked packages into `out/node_modules`."""
    await asyncio.to_thread(out.mkdir)
    for name in ("package.json", "package-lock.json"):
        await asyncio.to_thread(shutil.copyfile, recipe.clis / name, out / name)
    await shop.run(
        [
            "npm",
            "ci",
            "--ignore-scripts",
            "--no-audit",
            "--no-fund",
            "--omit-lockfile-registry-resolved",
            f"--cache={shop.folder / 'npm-cache'}",
        ],
        cwd=out,
    )
    for cli in CLIS:
        program = out / "node_modules" / cli.package / cli.program
        if not program.is_file():
            raise shop.failed(f"the npm package {cli.package} holds no {cli.program}")
