"""Static assets: our own (`static/`) and files of npm packages (`vendor/`).

All are served under one path with a hash of their content: `/static/<hash>/app.js`,
`/static/<hash>/vendor/xterm/xterm.mjs`. So browsers can cache them forever, and modules can import
each other by relative paths. Of a package only the files listed here are served.
"""

from __future__ import annotations

import gzip
import hashlib
import mimetypes
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from polydev.shared.errors import BadSettings
from polydev.shared.hints import Hint
from polydev.shared.providers import all_providers

HERE = Path(__file__).resolve().parents[1]
STATIC = HERE / "static"
LOCK = HERE / "assets" / "package-lock.json"

VENDOR = {
    "idiomorph/idiomorph.js": "idiomorph/dist/idiomorph.esm.js",
    "xterm/xterm.mjs": "@xterm/xterm/lib/xterm.mjs",
    "xterm/xterm.css": "@xterm/xterm/css/xterm.css",
    "xterm/addon-fit.mjs": "@xterm/addon-fit/lib/addon-fit.mjs",
    "marked/marked.js": "marked/lib/marked.esm.js",
    "dompurify/purify.js": "dompurify/dist/purify.es.mjs",
}
"""Paths under `vendor/` and the files in the packages."""

VENDOR_FOLDERS = {"novnc/core": "@novnc/novnc/core", "novnc/vendor": "@novnc/novnc/vendor"}
"""Package folders whose `.js` files are all served, since they import each other."""

_TYPES = {".mjs": "text/javascript", ".js": "text/javascript", ".svg": "image/svg+xml"}
_MIN_BYTES = 512


@dataclass(frozen=True, slots=True)
class Asset:
    """A served file."""

    path: Path
    media_type: str

    def read(self) -> tuple[bytes, bytes | None]:
        """Read the file; also compressed if that is shorter. Blocks."""
        plain = self.path.read_bytes()
        compressed = gzip.compress(plain, 9, mtime=0) if len(plain) > _MIN_BYTES else plain
        return plain, compressed if len(compressed) < len(plain) else None


class Assets:
    """All served files by name, with their common hash."""

    def __init__(self, packages: Path) -> None:
        """`packages` is a `node_modules` folder. Raises BadSettings if a file is missing."""
        self._files = dict(_own_files()) | dict(_package_files(packages))
        missing = [name for name, asset in self._files.items() if not asset.path.is_file()]
        if missing:
            raise BadSettings(
                f"The web assets are incomplete: {missing[0]} is missing from {packages}",
                hint=Hint.SET_ASSETS_DIR.text(),
            )
        self.hash = _hash(self._files)

    def find(self, name: str) -> Asset | None:
        """Find a served file; None if there is none of that name."""
        return self._files.get(name)

    def url(self, name: str) -> str:
        """Return the path of a file for browsers. Raises KeyError if there is none."""
        self._files[name]
        return f"/static/{self.hash}/{name}"


def default_folder(cache: Path) -> Path:
    """Return the folder where `scripts/setup` installs the packages of this lock file."""
    return cache / f"assets-{hashlib.sha256(LOCK.read_bytes()).hexdigest()[:16]}"


def _own_files() -> Iterator[tuple[str, Asset]]:
    for path in sorted(STATIC.rglob("*")):
        if path.is_file():
            yield path.relative_to(STATIC).as_posix(), _asset(path)
    for provider in all_providers():
        yield f"providers/{provider.id}.svg", _asset(provider.icon)


def _package_files(packages: Path) -> Iterator[tuple[str, Asset]]:
    for name, source in VENDOR.items():
        yield f"vendor/{name}", _asset(packages / source)
    for name, folder in VENDOR_FOLDERS.items():
        for path in sorted((packages / folder).rglob("*.js")):
            inside = path.relative_to(packages / folder).as_posix()
            yield f"vendor/{name}/{inside}", _asset(path)


def _asset(path: Path) -> Asset:
    guessed = _TYPES.get(path.suffix) or mimetypes.guess_type(path.name)[0]
    media_type = guessed or "application/octet-stream"
    is_text = media_type.startswith("text/") or path.suffix == ".svg"
    return Asset(path, f"{media_type}; charset=utf-8" if is_text else media_type)


def _hash(files: dict[str, Asset]) -> str:
    """Hash our own files, and the lock file for those of packages."""
    digest = hashlib.sha256(LOCK.read_bytes())
    for name, asset in sorted(files.items()):
        digest.update(name.encode() + b"\0")
        if not name.startswith("vendor/"):
            digest.update(hashlib.sha256(asset.path.read_bytes()).digest())
    return digest.hexdigest()[:16]
