"""Files that browsers keep: our own (`static/`) and those of npm packages (`vendor/`).

`server.py` serves them and `rendering.py` names them, under one path with a hash over all of them:
`/static/<hash>/app.js`, `/static/<hash>/vendor/xterm/xterm.mjs`. So a browser may keep them for
ever, and our modules import others, and packages' own modules each other, by relative paths.
Nothing but what is listed here is served of a package.
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
    "htmx/htmx.js": "htmx.org/dist/htmx.min.js",
    "idiomorph/idiomorph-ext.js": "idiomorph/dist/idiomorph-ext.min.js",
    "xterm/xterm.mjs": "@xterm/xterm/lib/xterm.mjs",
    "xterm/xterm.css": "@xterm/xterm/css/xterm.css",
    "xterm/addon-fit.mjs": "@xterm/addon-fit/lib/addon-fit.mjs",
    "marked/marked.js": "marked/lib/marked.esm.js",
    "dompurify/purify.js": "dompurify/dist/purify.es.mjs",
}
"""What is served under `vendor/`, and where it lies among the packages."""

VENDOR_FOLDERS = {"novnc/core": "@novnc/novnc/core", "novnc/vendor": "@novnc/novnc/vendor"}
"""Folders of which every `.js` is served: their modules import each other."""

_TYPES = {".mjs": "text/javascript", ".js": "text/javascript", ".svg": "image/svg+xml"}
_SMALL = 512
"""What is shorter gains nothing by being compressed."""


@dataclass(frozen=True, slots=True)
class Asset:
    """A file as it is served."""

    path: Path
    media_type: str

    def read(self) -> tuple[bytes, bytes | None]:
        """The file, and the same compressed if that is shorter. Blocks."""
        plain = self.path.read_bytes()
        packed = gzip.compress(plain, 9, mtime=0) if len(plain) > _SMALL else plain
        return plain, packed if len(packed) < len(plain) else None


class Assets:
    """Every file that is served, by name, under the hash of all of them."""

    def __init__(self, packages: Path) -> None:
        """`packages` is a `node_modules`. Raises BadSettings if one of the files is not there."""
        self._files = dict(_own()) | dict(_of_packages(packages))
        missing = [name for name, asset in self._files.items() if not asset.path.is_file()]
        if missing:
            raise BadSettings(
                f"The web assets are incomplete: {missing[0]} is missing from {packages}",
                hint=Hint.SET_ASSETS_DIR.text(),
            )
        self.hash = _hash(self._files)

    def find(self, name: str) -> Asset | None:
        """The file of that name, if it is one that is served."""
        return self._files.get(name)

    def url(self, name: str) -> str:
        """Where browsers find it. Raises KeyError: a template names what there is."""
        self._files[name]
        return f"/static/{self.hash}/{name}"


def default_folder(cache: Path) -> Path:
    """Where `scripts/setup` installs the packages: named by the hash of their lock file."""
    return cache / f"assets-{hashlib.sha256(LOCK.read_bytes()).hexdigest()[:16]}"


def _own() -> Iterator[tuple[str, Asset]]:
    for path in sorted(STATIC.rglob("*")):
        if path.is_file():
            yield path.relative_to(STATIC).as_posix(), _asset(path)
    for provider in all_providers():
        yield f"providers/{provider.id}.svg", _asset(provider.icon)


def _of_packages(packages: Path) -> Iterator[tuple[str, Asset]]:
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
    """Over our own files' content; packages' are what the lock file says."""
    digest = hashlib.sha256(LOCK.read_bytes())
    for name, asset in sorted(files.items()):
        digest.update(name.encode() + b"\0")
        if not name.startswith("vendor/"):
            digest.update(hashlib.sha256(asset.path.read_bytes()).digest())
    return digest.hexdigest()[:16]
