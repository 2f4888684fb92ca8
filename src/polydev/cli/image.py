"""`polydev image`: builds, lists, verifies and prunes the golden images that machines boot from.

Works on this machine's image store directly; no controller is needed.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated

import typer

from polydev.cli import image_warm, options, requirements
from polydev.cli.options import JsonFlag, runs
from polydev.cli.terminal import Step, Terminal
from polydev.errors import PolydevError
from polydev.hostd.images import BuildProgress, GoldenImage, ImageKind, ImageStore, ProgressSink
from polydev.hostd.inventory import images_in_use as in_use
from polydev.settings import CommonSettings, read

app = options.app("Golden images: what machines boot from.")

Kinds = Annotated[
    list[ImageKind] | None, typer.Argument(help="Kinds of image; all of them if none is named.")
]


def store() -> ImageStore:
    """This machine's image store (POLYDEV_IMAGES_DIR)."""
    return ImageStore(read(CommonSettings).images_dir)


def require_all(images_dir: Path) -> None:
    """Raises MissingImage for the first kind that has not been built."""
    images = ImageStore(images_dir)
    for kind in ImageKind:
        images.require(kind)


async def build_missing(terminal: Terminal, kinds: list[ImageKind], *, renew: bool) -> list[str]:
    """Build what is missing and show how far it is. Returns the names of the images built."""
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
        bool, typer.Option("--renew", help="Build anew from the distribution's packages of today.")
    ] = False,
    as_json: JsonFlag = False,
) -> None:
    """Build the images that are not built yet.

    Examples: `polydev image build`, `polydev image build cli`, `polydev image build --renew`.
    """
    terminal = Terminal(as_json=as_json)
    wanted = kinds or list(ImageKind)
    built = await build_missing(terminal, wanted, renew=renew)
    current = [store().require(kind) for kind in wanted]
    if as_json:
        terminal.answer({"built": built, "images": [_row(image) for image in current]})
    elif not built:
        terminal.say(f"Golden images are up to date: {', '.join(i.name for i in current)}")


@app.command(name="list")
@runs
async def list_images(as_json: JsonFlag = False) -> None:
    """List the images of this machine. Example: `polydev image list --json`."""
    terminal = Terminal(as_json=as_json)
    images = store()
    current = {made.name for kind in ImageKind if (made := images.find(kind))}
    found = images.list()
    if as_json:
        return terminal.answer(
            [_row(image) | {"current": image.name in current} for image in found]
        )
    if not found:
        return terminal.say(f"No images in {images.root}; `polydev image build` makes them.")
    terminal.table(
        ("image", "current", "MiB", "made", "versions"),
        (
            (
                image.name,
                "yes" if image.name in current else "no",
                f"{image.size / 2**20:.0f}",
                f"{image.created_at:%Y-%m-%d %H:%M}",
                ", ".join(f"{name} {version}" for name, version in image.versions.items()),
            )
            for image in found
        ),
    )


@app.command()
@runs
async def verify(
    names: Annotated[
        list[str] | None, typer.Argument(help="Names of images; all of them if none is named.")
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Compare images with the checksums of their manifests; exit code 1 if one is damaged.

    Example: `polydev image verify`, `polydev image verify cli-0123456789abcdef`.
    """
    terminal = Terminal(as_json=as_json)
    images = store()
    verdicts: dict[str, str | None] = {}
    for image in [images.named(name) for name in names] if names else images.list():
        try:
            async with terminal.step(f"Checking {image.name}"):
                await images.verify(image)
        except PolydevError as error:
            verdicts[image.name] = error.line()
            terminal.say(f"    {error.line()}", "red")
        else:
            verdicts[image.name] = None
    if as_json:
        terminal.answer([{"image": n, "ok": w is None, "error": w} for n, w in verdicts.items()])
    if any(verdicts.values()):
        raise typer.Exit(1)


@app.command()
@runs
async def prune(
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say what would be removed.")
    ] = False,
    as_json: JsonFlag = False,
) -> None:
    """Remove images that the current recipes did not make and that no machine uses.

    A machine that is stopped starts from the current image. Examples: `polydev image prune
    --dry-run`, `polydev image prune`.
    """
    requirements.root()
    terminal = Terminal(as_json=as_json)
    images, machines_dir = store(), read(CommonSettings).state_dir / "machines"
    used = await asyncio.to_thread(in_use, images.root, machines_dir)
    current = {made.name for kind in ImageKind if (made := images.find(kind))}
    old = [image for image in images.list() if image.name not in current]
    removed = [image for image in old if image.name not in used]
    for image in [] if dry_run else removed:
        async with terminal.step(f"Removing {image.name}"):
            await images.remove(image)
    if as_json:
        kept = sorted(image.name for image in old if image.name in used)
        rows = [_row(image) for image in removed]
        return terminal.answer({"removed": rows, "in_use": kept, "dry_run": dry_run})
    freed = sum(image.size for image in removed) / 2**20
    verb = "would be removed" if dry_run else "removed"
    terminal.say(f"{len(removed)} old images {verb}: {freed:.0f} MiB.")


app.command(name="warm")(image_warm.warm)


def _row(image: GoldenImage) -> dict[str, object]:
    return {
        "image": image.name,
        "kind": image.kind,
        "folder": str(image.folder),
        "bytes": image.size,
        "created_at": image.created_at.isoformat(),
        "versions": dict(image.versions),
    }
