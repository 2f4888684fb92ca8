"""Garbage collection of golden images that no machine uses.

The host agent collects old ones (`ImageCollector`); `polydev image prune` applies the same rules
without the waiting time. An image stays while the record of any machine names it, a process holds
it open, new machines boot from it, or it is the newest of the current recipe.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from polydev.hostagent.images import GoldenImage, ImageKind, ImageStore
from polydev.hostagent.machines.record import MachineFolder
from polydev.hostagent.vmm.firecracker.jail import mounts
from polydev.shared.atomic_files import write_whole
from polydev.shared.errors import MissingImage, PolydevError

log = logging.getLogger("polydev.hostagent")

PERIOD_S = 6 * 3600.0
MIN_AGE = timedelta(days=7)
"""The collector removes nothing younger: other versions of Polydev may share the store, and an
operator may want to roll back."""
_BATCH = 8
_USERS = ".users"


@dataclass(frozen=True, slots=True)
class ImageUsage:
    """An image of the store, and its use by machines."""

    image: GoldenImage
    is_current: bool
    """The newest of the current recipe."""
    is_pinned: bool
    is_next: bool
    """New machines boot from it."""
    machines: int
    """Number of machines whose records name it."""


def image_usages(store: ImageStore, machines_dir: Path) -> list[ImageUsage]:
    """List all images with their use, newest first. Blocks. Raises ImageDamaged.

    Machines with records that this process cannot read do not count.
    """
    used = named_by_machines(store, machines_dir)
    current = {image.name for kind in ImageKind if (image := store.find(kind))}
    pins = {kind: store.pinned(kind) for kind in ImageKind}
    return [
        ImageUsage(
            image,
            is_current=image.name in current,
            is_pinned=pins[image.kind] == image.name,
            is_next=image.name == pins[image.kind]
            or (pins[image.kind] is None and image.name in current),
            machines=used[image.name],
        )
        for image in store.list()
    ]


def earlier_than(store: ImageStore, image: GoldenImage) -> GoldenImage | None:
    """Return the previous image of the same kind, to roll back to. Raises ImageDamaged."""
    older = (
        it for it in store.list() if it.kind == image.kind and it.created_at < image.created_at
    )
    return next(older, None)


def register_machines_dir(store: ImageStore, machines_dir: Path) -> None:
    """Register a folder of machines at the store, so that all collectors inspect it.

    A demo, or a second Polydev, may share the store. Blocks.
    """
    path = str(machines_dir.resolve())
    users = store.root / _USERS
    users.mkdir(parents=True, exist_ok=True)
    name = hashlib.sha256(path.encode()).hexdigest()[:16]
    write_whole(users / name, path.encode(), mode=0o644, durable=False)


def named_by_machines(store: ImageStore, machines_dir: Path) -> Counter[str]:
    """Count the machines that use each image or kernel, in all registered folders. Blocks."""
    named: Counter[str] = Counter()
    jailed = (where.parent.resolve() for _, where in mounts.find_marked())  # of any Polydev
    for folder in {machines_dir.resolve(), *_registered_dirs(store), *jailed}:
        for path in folder.glob("vm-*"):
            if record := MachineFolder(folder, path.name).read():
                named.update({record.image, record.kernel} - {""})
    return named


def _registered_dirs(store: ImageStore) -> Iterator[Path]:
    """Yield the registered folders of machines; unregister those that are gone."""
    for entry in (store.root / _USERS).glob("[0-9a-f]*"):
        with suppress(OSError):
            folder = Path(entry.read_text())
            if folder.is_dir():
                yield folder
            else:
                entry.unlink()


def held_open(images_dir: Path) -> frozenset[str]:
    """Return the names of images that any process holds open. Blocks; needs root."""
    root = images_dir.resolve()
    held = set()
    for opened in Path("/proc").glob("[0-9]*/fd/*"):
        try:
            target = opened.readlink()
        except OSError:
            continue
        if target.is_relative_to(root) and target != root:
            held.add(target.relative_to(root).parts[0])
    return frozenset(held)


def old(store: ImageStore, machines_dir: Path) -> tuple[list[ImageUsage], list[ImageUsage]]:
    """Return the outdated images: the unused ones, and those still in use.

    Blocks; needs root. Raises ImageDamaged.
    """
    found = [it for it in image_usages(store, machines_dir) if not (it.is_current or it.is_next)]
    held = held_open(store.root) if found else frozenset()
    used = [it for it in found if it.machines or it.image.name in held]
    return [it for it in found if it not in used], used


@dataclass(frozen=True, slots=True)
class ImageCollector:
    """Removes old images while the host agent runs."""

    store: ImageStore
    machines_dir: Path

    async def run(self) -> None:
        """Collect periodically, until cancelled."""
        while True:
            await self.collect(datetime.now(UTC))
            await asyncio.sleep(PERIOD_S)

    async def collect(self, now: datetime) -> list[str]:
        """Remove a batch of unused images older than `MIN_AGE`.

        The previous image of each kind stays for `polydev image rollback`.
        """
        removed = []
        try:
            await asyncio.to_thread(register_machines_dir, self.store, self.machines_dir)
            candidates = await asyncio.to_thread(self._candidates, now)
            for image in candidates[:_BATCH]:
                if await self.store.remove(image):
                    removed.append(image.name)
                    log.info(
                        "removed golden image %s of %s (%.0f MiB): no machine uses it, and newer"
                        " images exist",
                        *(image.name, f"{image.created_at:%Y-%m-%d}", image.size / 2**20),
                    )
        except (PolydevError, OSError) as error:
            log.warning("cannot collect old golden images: %s", error)
        return removed

    def _candidates(self, now: datetime) -> list[GoldenImage]:
        unused, _ = old(self.store, self.machines_dir)
        spared = {image.name for image in self._rollback_images()}
        return [
            it.image
            for it in unused
            if it.image.name not in spared and now - it.image.created_at > MIN_AGE
        ]

    def _rollback_images(self) -> Iterator[GoldenImage]:
        for kind in ImageKind:
            try:
                earlier = earlier_than(self.store, self.store.require(kind))
            except MissingImage:  # any of them may be needed next
                yield from (it for it in self.store.list() if it.kind == kind)
            else:
                yield from [earlier] if earlier else []
