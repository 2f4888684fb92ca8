"""The inputs of an image that this repository decides: recipes, guest files, lock files.

The store finds images by the recipe's hash, without asking the package manager: packages change
daily, and `apt-get update` must not invalidate a host's images. The packages' versions are part of
an image's own hash, and of its manifest.
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

# Modules of this package that determine an image's content: a change changes the recipe.
_BUILDERS = {
    ImageKind.KERNEL: ("kernel.py", "initramfs.py"),
    ImageKind.CLI: ("rootfs.py", "rootfs_files.py", "npm.py"),
    ImageKind.BROWSER: ("rootfs.py", "rootfs_files.py", "npm.py"),
}

INITRAMFS_ONLY = ("initramfs-init.sh",)
INITRAMFS_FILES = (*INITRAMFS_ONLY, "phases.sh")


@dataclass(frozen=True, slots=True)
class Distribution:
    """Package source; None means the host's own apt configuration."""

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
        """Return the folder of a bundle's package.json and package-lock.json."""
        return self.recipes / name

    @staticmethod
    def bundles(kind: ImageKind) -> tuple[str, ...]:
        """Name the npm bundles of a kind of machine; only CLI machines run chats."""
        return ("clis", "adapters") if kind is ImageKind.CLI else ("clis",)

    def provider_data(self) -> list[dict[str, Any]]:
        """Parsed `provider.toml` of every provider, sorted by folder."""
        return [tomllib.loads(path.read_text("utf-8")) for path in self._provider_tomls()]

    def provider_files(self) -> dict[str, Path]:
        """List the provider definitions that machines contain."""
        files = {}
        for path, data in zip(self._provider_tomls(), self.provider_data(), strict=True):
            files[f"usr/share/polydev/providers/{data['id']}.toml"] = path
            if script := data["status"].get("script"):
                files[data["status"]["argv"][0].lstrip("/")] = path.with_name(script)
        return files

    def _provider_tomls(self) -> list[Path]:
        return sorted(self.providers.glob("*/provider.toml"))

    def packages(self, kind: ImageKind) -> list[str]:
        """List the distribution packages of a kind of machine, sorted."""
        names = set(_names(self.recipes / "cli" / "packages"))
        if kind is ImageKind.BROWSER:
            names |= set(_names(self.recipes / "browser" / "packages"))
        return sorted(names)

    def modules(self) -> list[str]:
        """List the kernel modules that the initramfs loads, in the recipe's order."""
        return _names(self.recipes / "kernel" / "modules")

    def hash(self, kind: ImageKind) -> str:
        """Hash all inputs of an image of this kind, except package versions."""
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
        """Return True if a boot file belongs to root images of this kind."""
        inside = path.relative_to(self.machine_files)
        browser_only = inside.parts[0] == "browser" or inside.name == "inittab.browser"
        return inside.name not in INITRAMFS_ONLY and (kind is ImageKind.BROWSER or not browser_only)


def source_files(folder: Path) -> list[Path]:
    """List a folder's files, sorted, without caches of Python and npm."""
    return sorted(
        path
        for path in folder.rglob("*")
        if path.is_file() and not {"__pycache__", "node_modules"} & set(path.parts)
    )


def digest_text(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def digest_file(path: Path) -> str:
    """Hash a file with SHA-256."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _names(path: Path) -> list[str]:
    lines = (line.partition("#")[0].strip() for line in path.read_text().splitlines())
    return [line for line in lines if line]
