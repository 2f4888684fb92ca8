"""Golden images after they were renewed: which are used, by whom, and which are old and may go.

The host agent collects old ones by itself (`Collector`), `polydev image` lists them, and prunes
with the same rules and less patience. Images are never taken from a machine: one that is named in
the record of any machine, running, at rest or hibernated, stays; so does one that any process holds
open, that new starts take, or that today's recipe made last.
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
KEPT = timedelta(days=7)
"""By itself nothing younger is removed: a store may be shared by versions of Polydev that know
nothing of each other, and somebody may want to roll back."""
_AT_ONCE = 8
_USERS = ".users"


@dataclass(frozen=True, slots=True)
class ImageUsage:
    """What an image of the store is to machines."""

    image: GoldenImage
    is_current: bool
    """The newest that today's recipe made."""
    is_pinned: bool
    is_next: bool
    """What a machine that starts now boots from."""
    machines: int
    """How many machines' records name it."""


def image_usages(store: ImageStore, machines_dir: Path) -> list[ImageUsage]:
    """All images, the newest first. Blocking. Raises: ImageDamaged.

    Machines whose records cannot be read by who asks are not counted.
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
    """The newest older image of the same kind: what to roll back to. Raises: ImageDamaged."""
    older = (
        it for it in store.list() if it.kind == image.kind and it.created_at < image.created_at
    )
    return next(older, None)


def introduce(store: ImageStore, machines_dir: Path) -> None:
    """Have everybody who removes images look at these machines too: a demo, or a second Polydev,
    may share the store. Blocking."""
    place = str(machines_dir.resolve())
    users = store.root / _USERS
    users.mkdir(parents=True, exist_ok=True)
    name = hashlib.sha256(place.encode()).hexdigest()[:16]
    write_whole(users / name, place.encode(), mode=0o644, durable=False)


def named_by_machines(store: ImageStore, machines_dir: Path) -> Counter[str]:
    """How many machines' records name each image or kernel, in this and all known folders.

    Blocking.
    """
    named: Counter[str] = Counter()
    jailed = (where.parent.resolve() for _, where in mounts.find_marked())  # whoever's they are
    for folder in {machines_dir.resolve(), *_introduced(store), *jailed}:
        for path in folder.glob("vm-*"):
            if record := MachineFolder(folder, path.name).read():
                named.update({record.image, record.kernel} - {""})
    return named


def _introduced(store: ImageStore) -> Iterator[Path]:
    """Folders of machines that boot from this store. One that is gone is forgotten."""
    for entry in (store.root / _USERS).glob("[0-9a-f]*"):
        with suppress(OSError):
            place = Path(entry.read_text())
            if place.is_dir():
                yield place
            else:
                entry.unlink()


def held_open(images_dir: Path) -> frozenset[str]:
    """Images that any process holds open: those of machines of other state folders too.

    Blocking; needs root to see everybody's.
    """
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
    """Images that no start takes any more: those that may go, and those that something uses.

    Blocking; needs root. Raises: ImageDamaged.
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
        """Look now and again, until cancelled."""
        while True:
            await self.collect(datetime.now(UTC))
            await asyncio.sleep(PERIOD_S)

    async def collect(self, now: datetime) -> list[str]:
        """Remove what is old, unused and older than `KEPT`, but the last one before what starts
        take of each kind: that is what `image rollback` goes back to. A few at once."""
        removed = []
        try:
            await asyncio.to_thread(introduce, self.store, self.machines_dir)
            candidates = await asyncio.to_thread(self._candidates, now)
            for image in candidates[:_AT_ONCE]:
                if await self.store.remove(image):
                    removed.append(image.name)
                    log.info(
                        "removed golden image %s of %s: no machine uses it, and newer ones are"
                        " there (%.0f MiB)",
                        *(image.name, f"{image.created_at:%Y-%m-%d}", image.size / 2**20),
                    )
        except (PolydevError, OSError) as error:
            log.warning("old golden images were not looked for: %s", error)
        return removed

    def _candidates(self, now: datetime) -> list[GoldenImage]:
        unused, _ = old(self.store, self.machines_dir)
        spared = {image.name for image in self._to_roll_back_to()}
        return [
            it.image
            for it in unused
            if it.image.name not in spared and now - it.image.created_at > KEPT
        ]

    def _to_roll_back_to(self) -> Iterator[GoldenImage]:
        for kind in ImageKind:
            try:
                earlier = earlier_than(self.store, self.store.require(kind))
            except MissingImage:  # nobody can say which of them is wanted next
                yield from (it for it in self.store.list() if it.kind == kind)
            else:
                yield from [earlier] if earlier else []
