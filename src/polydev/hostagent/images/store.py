"""The image store: finds, verifies and builds golden images, one build at a time.

A folder is an image if it holds a manifest. It is built under a temporary name in the same store
and renamed, so that an aborted build leaves nothing that looks finished. The lock is the kernel's:
it ends with its process.
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import hashlib
import json
import os
import secrets
import shutil
import tempfile
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import IO

from polydev.hostagent.images import pins
from polydev.hostagent.images.build_context import BuildContext, disk_full
from polydev.hostagent.images.cache import StageCache
from polydev.hostagent.images.kernel import build_kernel
from polydev.hostagent.images.manifest import (
    MANIFEST,
    GoldenImage,
    ImageFile,
    ImageKind,
    Ingredients,
    ProgressSink,
    damaged,
    read_image,
    write_manifest,
)
from polydev.hostagent.images.recipe import Recipe, digest_file
from polydev.hostagent.images.rootfs import build_rootfs
from polydev.shared.errors import ImageBuildFailed, MissingImage
from polydev.shared.hints import Hint

_TEMPORARY = ".building-"
_MAX_LOGS = 10
_GIB = 1 << 30
# Peak disk usage of a build, cache included; checked first, so that it fails early.
_NEEDED_BYTES = {ImageKind.KERNEL: _GIB // 2, ImageKind.CLI: 3 * _GIB, ImageKind.BROWSER: 5 * _GIB}


class ImageStore:
    """The golden images in one folder (docs/machines.md, "Images")."""

    def __init__(self, root: Path, recipe: Recipe | None = None) -> None:
        self.root = root
        self.recipe = recipe or Recipe()

    def find(self, kind: ImageKind | str) -> GoldenImage | None:
        """Return the newest image of a kind built by the current recipe, or None."""
        wanted = self.recipe.hash(ImageKind(kind))
        return next((image for image in self.list() if image.recipe == wanted), None)

    def require(self, kind: ImageKind | str) -> GoldenImage:
        """Return the image for new machines: the pinned one, else the current one.

        Raises: MissingImage; ImageDamaged for a broken pin.
        """
        pinned = self.pinned(kind)
        if pinned is not None:
            return self._pinned_image(ImageKind(kind), pinned)
        image = self.find(kind)
        if image is None:
            raise MissingImage(
                f"There is no current golden image `{kind}` in {self.root}",
                hint=Hint.BUILD_IMAGE.text(kind=kind),
            )
        return image

    def require_all(self) -> None:
        """Raise MissingImage for the first kind without a usable image."""
        for kind in ImageKind:
            self.require(kind)

    def pinned(self, kind: ImageKind | str) -> str | None:
        """Return the image that a kind is pinned to, or None. Raises: ImageDamaged."""
        return pins.read(self.root, ImageKind(kind))

    def use(self, image: GoldenImage) -> None:
        """Pin its kind to this image, for all machines that start from now on.

        Raises: ImageDamaged if it is incomplete. Blocking.
        """
        self.compare_sizes(image)
        pins.write(self.root, image.kind, image.name)

    def use_newest(self, kind: ImageKind | str) -> bool:
        """Remove a kind's pin; False if there was none."""
        return pins.remove(self.root, ImageKind(kind))

    def _pinned_image(self, kind: ImageKind, name: str) -> GoldenImage:
        try:
            return self.named(name)
        except MissingImage as error:
            raise MissingImage(
                f"Machines of kind {kind} are pinned to {name}. {error.message}",
                hint=Hint.UNPIN_IMAGE.text(kind=kind),
            ) from None

    def list(self) -> list[GoldenImage]:
        """List all finished images, newest first. Raises: ImageDamaged."""
        if not self.root.is_dir():
            return []
        folders = (path for path in self.root.iterdir() if not path.name.startswith("."))
        images = [image for image in map(read_image, folders) if image is not None]
        return sorted(images, key=lambda image: image.created_at, reverse=True)

    def named(self, name: str) -> GoldenImage:
        """Return the image with that name, current or not. Raises: MissingImage."""
        image = None if "/" in name or name.startswith(".") else read_image(self.root / name)
        if image is None:
            raise MissingImage(f"There is no golden image {name} in {self.root}")
        return image

    def compare_sizes(self, image: GoldenImage) -> None:
        """Compare file sizes with the manifest, which is quick. Raises: ImageDamaged."""
        for name, expected in image.files.items():
            _compare_size(image, name, expected)

    async def verify(self, image: GoldenImage) -> None:
        """Compare every file with the manifest. Raises: ImageDamaged naming the file."""
        await asyncio.to_thread(_verify, image)

    async def remove(self, image: GoldenImage) -> bool:
        """Delete an image; False if someone else did.

        The next build removes the rest of an interrupted deletion. The caller ensures that no
        machine boots from the image.
        """
        temporary = self.root / f"{_TEMPORARY}removed-{secrets.token_hex(4)}-{image.name}"
        try:
            image.folder.rename(temporary)
        except FileNotFoundError:
            return False
        await asyncio.to_thread(shutil.rmtree, temporary, ignore_errors=True)
        return True

    async def build(
        self, kind: ImageKind | str, progress: ProgressSink, *, renew: bool = False
    ) -> GoldenImage:
        """Build an image of a kind, unless the current recipe's exists. Needs root.

        `renew` always builds, from the distribution's current packages. Raises: ImageBuildFailed,
        MissingTool, DiskFull; unfinished files are removed.
        """
        kind = ImageKind(kind)
        if not renew and (image := self.find(kind)) is not None:
            return image
        if os.geteuid() != 0:
            raise ImageBuildFailed(
                f"Building the {kind} image needs root", hint="Run the command as root"
            )
        try:
            async with self._build_context(kind, progress) as context:
                image = None if renew else self.find(kind)
                return image or await self._build(context, renew)
        except OSError as error:
            if error.errno in {errno.ENOSPC, errno.EDQUOT}:
                raise disk_full(self.root) from error
            raise ImageBuildFailed(f"Building the {kind} image failed: {error}") from error

    async def _build(self, context: BuildContext, renew: bool) -> GoldenImage:
        recipe_hash = self.recipe.hash(context.kind)
        out = context.folder / "out"
        out.mkdir()
        if context.kind is ImageKind.KERNEL:
            ingredients = await build_kernel(context, self.recipe, out)
        else:
            cache = StageCache(self.root / ".cache", context.folder, renew)
            ingredients = await build_rootfs(context, self.recipe, cache, out)
        context.stage("checksums")
        return await asyncio.to_thread(self._publish, context.kind, recipe_hash, ingredients, out)

    def _publish(
        self, kind: ImageKind, recipe_hash: str, ingredients: Ingredients, out: Path
    ) -> GoldenImage:
        files = {}
        for path in sorted(out.iterdir()):
            path.chmod(0o444)
            files[path.name] = ImageFile(digest_file(path), path.stat().st_size)
        inputs = {"recipe": recipe_hash, "packages": dict(ingredients.packages)}
        full_hash = hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()
        target = self.root / f"{kind}-{full_hash[:16]}"
        if (image := read_image(target)) is not None:
            return image
        created_at = datetime.now(UTC)
        image = GoldenImage(
            kind, full_hash, recipe_hash, out, created_at, files, ingredients.versions, inputs
        )
        for path in out.iterdir():
            _fsync(path)
        write_manifest(image)
        _fsync(out / MANIFEST)
        out.chmod(0o755)
        out.rename(target)
        _fsync(self.root)
        published = read_image(target)
        assert published is not None  # noqa: S101 - just renamed
        return published

    @asynccontextmanager
    async def _build_context(
        self, kind: ImageKind, progress: ProgressSink
    ) -> AsyncIterator[BuildContext]:
        """Yield a temporary folder, under the store's lock, after removing leftovers."""
        self.root.mkdir(parents=True, exist_ok=True)
        logs = self.root / "logs"
        logs.mkdir(exist_ok=True)
        with (self.root / ".lock").open("w") as lock:
            os.fchmod(lock.fileno(), 0o600)  # anyone who can open it could hold the lock
            await _acquire(lock)
            await asyncio.to_thread(self._sweep)
            free = shutil.disk_usage(self.root).free
            if free < _NEEDED_BYTES[kind]:
                needs = f": {free / _GIB:.1f} GiB free, {_NEEDED_BYTES[kind] / _GIB:.1f} GiB needed"
                raise disk_full(self.root, needs)
            folder = Path(tempfile.mkdtemp(prefix=f"{_TEMPORARY}{kind}-", dir=self.root))
            stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S")
            try:
                yield BuildContext(kind, folder, logs / f"build-{kind}-{stamp}.log", progress)
            finally:
                await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)

    def _sweep(self) -> None:
        for path in self.root.glob(f"{_TEMPORARY}*"):
            shutil.rmtree(path, ignore_errors=path.name.startswith(f"{_TEMPORARY}removed-"))
        logs = sorted((self.root / "logs").glob("build-*.log"), key=lambda log: log.stat().st_mtime)
        for log in logs[:-_MAX_LOGS]:
            log.unlink()


async def _acquire(lock: IO[str]) -> None:
    """Take an exclusive lock on the file; wait for another builder if there is one.

    The wait has its own thread: it may be long, and must not keep a cancelled build alive.
    """
    loop = asyncio.get_running_loop()
    held: asyncio.Future[None] = loop.create_future()
    descriptor = os.dup(lock.fileno())

    def wait() -> None:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        os.close(descriptor)
        with suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(_resolve, held)

    threading.Thread(target=wait, daemon=True).start()
    await held


def _resolve(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


def _verify(image: GoldenImage) -> None:
    for name, expected in image.files.items():
        _compare_size(image, name, expected)
        if digest_file(image.folder / name) != expected.sha256:
            raise damaged(image, f"the checksum of {name} does not match")


def _compare_size(image: GoldenImage, name: str, expected: ImageFile) -> None:
    try:
        size = (image.folder / name).stat().st_size
    except FileNotFoundError as error:
        raise damaged(image, f"{name} is missing") from error
    if size != expected.size:
        raise damaged(image, f"{name} has {size} bytes instead of {expected.size}")


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
