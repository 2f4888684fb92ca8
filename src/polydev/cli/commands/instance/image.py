"""`polydev image`: build, list, select and remove golden images.

These commands use this machine's image store and need no controller.
"""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Annotated

import typer

from polydev.cli import options
from polydev.cli.commands.instance import image_warm
from polydev.cli.options import JsonFlag, runs
from polydev.cli.output.printer import Step, Terminal
from polydev.cli.supervisor import preflight
from polydev.hostagent.images import (
    BuildProgress,
    GoldenImage,
    ImageKind,
    ImageStore,
    ProgressSink,
)
from polydev.hostagent.machines import image_gc
from polydev.shared.errors import BadRequest, MissingImage, PolydevError
from polydev.shared.settings.base import CommonSettings, read

app = options.app("Manage the golden images, which machines boot from.")

Kinds = Annotated[
    list[ImageKind] | None, typer.Argument(help="Kinds of image. Default: every kind.")
]


def store() -> ImageStore:
    """Image store of this machine (POLYDEV_IMAGES_DIR)."""
    return ImageStore(read(CommonSettings).images_dir)


def machines_dir() -> Path:
    """Folder of the machines on this host (POLYDEV_STATE_DIR)."""
    return read(CommonSettings).state_dir / "machines"


async def build_missing(terminal: Terminal, kinds: list[ImageKind], *, renew: bool) -> list[str]:
    """Build missing images and show the progress. Returns the names of the built images."""
    images = store()
    built = []
    for kind in kinds:
        if not renew and images.find(kind) is not None:
            continue
        async with terminal.step(f"Building the golden image {kind}") as step:
            image = await images.build(kind, _shown_in(step, terminal), renew=renew)
            step.detail = f"{image.size / 2**20:.0f} MiB"
        built.append(image.name)
    return built


def _shown_in(step: Step, terminal: Terminal) -> ProgressSink:
    def show(progress: BuildProgress) -> None:
        if not terminal.moves and not step.detail.startswith(progress.stage):
            terminal.say(f"    {progress.kind}: {progress.stage} ({progress.elapsed_s:.0f} s)")
        part = "" if progress.fraction is None else f" {progress.fraction:.0%}"
        step.detail = progress.stage + part

    return show


@app.command()
@runs
async def build(
    kinds: Kinds = None,
    renew: Annotated[
        bool, typer.Option("--renew", help="Rebuild with the current packages of the distribution.")
    ] = False,
    as_json: JsonFlag = False,
) -> None:
    """Build missing images.

    Examples: `polydev image build`, `polydev image build cli`, `polydev image build --renew`.
    """
    terminal = Terminal(as_json=as_json)
    wanted = kinds or list(ImageKind)
    built = await build_missing(terminal, wanted, renew=renew)
    current = [image for kind in wanted if (image := store().find(kind))]
    if as_json:
        return terminal.answer({"built": built, "images": [_row(image) for image in current]})
    if not built:
        terminal.say(f"Golden images are up to date: {', '.join(i.name for i in current)}")
    for image in current:
        pinned = store().pinned(image.kind)
        if pinned not in {None, image.name}:
            terminal.say(
                f"Machines still boot from {pinned}. To change that, run: "
                f"polydev image use --newest {image.kind}"
            )


@app.command(name="list")
@runs
async def list_images(as_json: JsonFlag = False) -> None:
    """List the images of this machine and the number of machines that use them.

    `current` is the last build of the current recipe; `next` is the image of the next boot.
    Example: `polydev image list --json`.
    """
    terminal = Terminal(as_json=as_json)
    images = store()
    found = await asyncio.to_thread(image_gc.image_usages, images, machines_dir())
    if as_json:
        return terminal.answer([_status_row(it) for it in found])
    if not found:
        return terminal.say(f"No images in {images.root}. Build them with `polydev image build`.")
    terminal.table(
        ("image", "current", "next", "machines", "MiB", "built", "versions"),
        (
            (
                it.image.name,
                "yes" if it.is_current else "no",
                "pinned" if it.is_pinned else "yes" if it.is_next else "no",
                str(it.machines) if _sees_machines() else "?",
                f"{it.image.size / 2**20:.0f}",
                f"{it.image.created_at:%Y-%m-%d %H:%M}",
                ", ".join(f"{name} {version}" for name, version in it.image.versions.items()),
            )
            for it in found
        ),
    )


@app.command()
@runs
async def use(
    names: Annotated[
        list[str] | None, typer.Argument(help="Names of images, or kinds with --newest.")
    ] = None,
    newest: Annotated[
        bool, typer.Option("--newest", help="Boot from the current images again.")
    ] = False,
    as_json: JsonFlag = False,
) -> None:
    """Pin the image that machines of its kind boot from.

    The pin stays until `--newest` removes it, even after a build. Running and hibernated machines
    do not change. Examples: `polydev image use cli-0123456789abcdef`, `polydev image use --newest`.
    """
    preflight.root()
    images = store()
    if newest:
        for kind in [_kind(name) for name in names] if names else list(ImageKind):
            images.use_newest(kind)
    elif names:
        for image in [images.named(name) for name in names]:
            await asyncio.to_thread(images.use, image)
    else:
        raise BadRequest("Name an image", hint="List the images with `polydev image list`")
    _report_next(images, as_json=as_json)


@app.command()
@runs
async def rollback(kinds: Kinds = None, as_json: JsonFlag = False) -> None:
    """Pin the previous image, so that machines boot from it.

    Without a kind: every kind that has a previous image. `polydev image use --newest` returns to
    the current images. Examples: `polydev image rollback`, `polydev image rollback cli`.
    """
    preflight.root()
    images = store()
    wanted = kinds or list(ImageKind)
    found = [image for kind in wanted if (image := _earlier(images, kind)) is not None]
    if not found or (kinds and len(found) < len(set(kinds))):
        missing = ", ".join(sorted(set(wanted) - {image.kind for image in found}))
        hint = "List the images with `polydev image list`"
        raise MissingImage(f"There is no previous image of: {missing}", hint=hint)
    for image in found:
        await asyncio.to_thread(images.use, image)
    _report_next(images, as_json=as_json)


def _earlier(images: ImageStore, kind: ImageKind) -> GoldenImage | None:
    """Image that was used before the current one; None if there is none."""
    try:
        return image_gc.earlier_than(images, images.require(kind))
    except MissingImage:
        return None


def _kind(name: str) -> ImageKind:
    try:
        return ImageKind(name)
    except ValueError:
        raise BadRequest(
            f"There is no image kind {name!r}", hint=f"Kinds: {', '.join(ImageKind)}"
        ) from None


def _report_next(images: ImageStore, *, as_json: bool) -> None:
    terminal = Terminal(as_json=as_json)
    pinned = {str(kind): images.pinned(kind) for kind in ImageKind}
    if as_json:
        return terminal.answer({"pinned": {kind: name for kind, name in pinned.items() if name}})
    for kind, name in pinned.items():
        terminal.say(f"{kind}: the next boot uses {name or 'the current image'}")


@app.command()
@runs
async def verify(
    names: Annotated[
        list[str] | None, typer.Argument(help="Names of images. Default: every image.")
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Check images against the checksums in their manifests. Exits with 1 if one is damaged.

    Examples: `polydev image verify`, `polydev image verify cli-0123456789abcdef`.
    """
    terminal = Terminal(as_json=as_json)
    images = store()
    failures: dict[str, str | None] = {}
    for image in [images.named(name) for name in names] if names else images.list():
        try:
            async with terminal.step(f"Checking {image.name}"):
                await images.verify(image)
        except PolydevError as error:
            failures[image.name] = error.line()
            terminal.say(f"    {error.line()}", "red")
        else:
            failures[image.name] = None
    if as_json:
        terminal.answer([{"image": n, "ok": w is None, "error": w} for n, w in failures.items()])
    if any(failures.values()):
        raise typer.Exit(1)


@app.command()
@runs
async def prune(
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only print what would be removed.")
    ] = False,
    as_json: JsonFlag = False,
) -> None:
    """Remove images that no machine uses, including previous ones.

    A stopped machine boots from the current image. Examples: `polydev image prune --dry-run`,
    `polydev image prune`.
    """
    preflight.root()
    terminal = Terminal(as_json=as_json)
    images = store()
    unused, used = await asyncio.to_thread(image_gc.old, images, machines_dir())
    removed = [it.image for it in unused]
    for image in [] if dry_run else removed:
        async with terminal.step(f"Removing {image.name}"):
            await images.remove(image)
    if as_json:
        in_use = sorted(it.image.name for it in used)
        rows = [_row(image) for image in removed]
        return terminal.answer({"removed": rows, "in_use": in_use, "dry_run": dry_run})
    freed = sum(image.size for image in removed) / 2**20
    verb = "would be removed" if dry_run else "removed"
    terminal.say(f"{len(removed)} old images {verb}: {freed:.0f} MiB.")


app.command(name="warm")(image_warm.warm)


def _status_row(it: image_gc.ImageUsage) -> dict[str, object]:
    return _row(it.image) | {
        "current": it.is_current,
        "next": it.is_next,
        "pinned": it.is_pinned,
        "machines": it.machines if _sees_machines() else None,
    }


def _sees_machines() -> bool:
    # Only root can read the machines' records.
    return os.geteuid() == 0


def _row(image: GoldenImage) -> dict[str, object]:
    return {
        "image": image.name,
        "kind": image.kind,
        "folder": str(image.folder),
        "bytes": image.size,
        "created_at": image.created_at.isoformat(),
        "versions": dict(image.versions),
    }
