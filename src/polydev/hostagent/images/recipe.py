"""What goes into an image as far as we decide it: recipes, guest files, lock files, settings.

The store asks for a recipe's hash to find an image without asking the distribution's package
manager anything: packages move daily, and a host must not lose its images by `apt-get update`.
What the distribution gave at the time is part of an image's own hash, and in its manifest.
"""

from __future__ import annotations

import hashlib
import json
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from polydev.hostagent.images.manifest import ImageKind

_HERE = Path(__file__).resolve().parent
_PACKAGE = _HERE.parents[1]
_CHECKOUT = _PACKAGE.parents[1]

# Modules of this package that decide what is in an image: changing one changes the recipe.
_BUILDERS = {
    ImageKind.KERNEL: ("kernel.py", "initramfs.py"),
    ImageKind.CLI: ("rootfs.py", "rootfs_files.py", "npm.py"),
    ImageKind.BROWSER: ("rootfs.py", "rootfs_files.py", "npm.py"),
}

INITRAMFS_ONLY = ("initramfs-init.sh",)
INITRAMFS_FILES = (*INITRAMFS_ONLY, "phases.sh")


@dataclass(frozen=True, slots=True)
class Distribution:
    """Where packages come from; what is None is taken from the host's own apt configuration."""

    suite: str | None = None
    mirror: str | None = None
    components: str = "main"
    kernel_package: str = "linux-image-cloud-amd64"


@dataclass(frozen=True, slots=True)
class Recipe:
    """The sources of all images: folders of a checkout, and the distribution."""

    recipes: Path = _CHECKOUT / "images"
    guest: Path = _PACKAGE / "guest"
    providers: Path = _PACKAGE / "shared" / "providers"
    distribution: Distribution = Distribution()

    @property
    def machine_files(self) -> Path:
        """Init, boot scripts and services of a machine."""
        return self.guest / "machine"

    @property
    def browser_service(self) -> Path:
        """The HTTP service of a browser machine."""
        return self.guest / "browser_service"

    def bundle(self, name: str) -> Path:
        """The folder with package.json and package-lock.json of some npm packages."""
        return self.recipes / name

    @staticmethod
    def bundles(kind: ImageKind) -> tuple[str, ...]:
        """Names of the npm bundles of a kind of machine: chats are led in CLI machines only."""
        return ("clis", "adapters") if kind is ImageKind.CLI else ("clis",)

    def provider_data(self) -> list[dict[str, Any]]:
        """Parsed `provider.toml` of every provider, sorted by folder."""
        return [tomllib.loads(path.read_text("utf-8")) for path in self._provider_tomls()]

    def provider_files(self) -> dict[str, Path]:
        """Source of every provider file that machines hold, by its path inside a machine."""
        files = {}
        for path, data in zip(self._provider_tomls(), self.provider_data(), strict=True):
            files[f"usr/share/polydev/providers/{data['id']}.toml"] = path
            if script := data["status"].get("script"):
                files[data["status"]["argv"][0].lstrip("/")] = path.with_name(script)
        return files

    def _provider_tomls(self) -> list[Path]:
        return sorted(self.providers.glob("*/provider.toml"))

    def packages(self, kind: ImageKind) -> list[str]:
        """Names of the distribution packages of a kind of machine, sorted."""
        names = set(_names(self.recipes / "cli" / "packages"))
        if kind is ImageKind.BROWSER:
            names |= set(_names(self.recipes / "browser" / "packages"))
        return sorted(names)

    def modules(self) -> list[str]:
        """Names of the kernel modules that the initramfs must load, in the recipe's order."""
        return _names(self.recipes / "kernel" / "modules")

    def hash(self, kind: ImageKind) -> str:
        """SHA-256 over everything that decides an image of this kind, packages' versions aside."""
        parts = {
            "kind": str(kind),
            "distribution": repr(self.distribution),
            "files": [[name, digest_file(path)] for name, path in self._inputs(kind)],
        }
        return digest_text(json.dumps(parts, sort_keys=True))

    def _inputs(self, kind: ImageKind) -> Iterator[tuple[str, Path]]:
        for name in _BUILDERS[kind]:
            yield f"builder/{name}", _HERE / name
        if kind is ImageKind.KERNEL:
            for name in INITRAMFS_FILES:
                yield f"machine/{name}", self.machine_files / name
        else:
            for name, path in self.provider_files().items():
                yield f"providers/{name}", path
        for label, folder in self._input_folders(kind).items():
            for path in source_files(folder):
                if folder != self.machine_files or self._concerns(kind, path):
                    yield f"{label}/{path.relative_to(folder)}", path

    def _input_folders(self, kind: ImageKind) -> dict[str, Path]:
        if kind is ImageKind.KERNEL:
            return {"kernel": self.recipes / "kernel"}
        folders = {
            "cli": self.recipes / "cli",
            "machine": self.machine_files,
            **{name: self.bundle(name) for name in self.bundles(kind)},
        }
        if kind is ImageKind.BROWSER:
            folders["browser"] = self.recipes / "browser"
            folders["browser_service"] = self.browser_service
        return folders

    def _concerns(self, kind: ImageKind, path: Path) -> bool:
        """Whether a file of a machine's boot goes into a root image of this kind."""
        inside = path.relative_to(self.machine_files)
        browser_only = inside.parts[0] == "browser" or inside.name == "inittab.browser"
        return inside.name not in INITRAMFS_ONLY and (kind is ImageKind.BROWSER or not browser_only)


def source_files(folder: Path) -> list[Path]:
    """Files of a source folder, sorted, without what Python or npm leave behind."""
    return sorted(
        path
        for path in folder.rglob("*")
        if path.is_file() and not {"__pycache__", "node_modules"} & set(path.parts)
    )


def digest_text(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def digest_file(path: Path) -> str:
    """SHA-256 of a file, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _names(path: Path) -> list[str]:
    lines = (line.partition("#")[0].strip() for line in path.read_text().splitlines())
    return [line for line in lines if line]
