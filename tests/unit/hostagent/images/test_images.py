"""The image store: lookup by inputs, atomic builds, one builder at a time."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from polydev.hostagent.images import (
    BuildProgress,
    Distribution,
    ImageKind,
    ImageStore,
    Recipe,
    store,
)
from polydev.hostagent.images.build_context import BuildContext
from polydev.hostagent.images.manifest import Ingredients
from polydev.hostagent.images.recipe import source_files
from polydev.shared.errors import (
    DiskFull,
    ImageBuildFailed,
    ImageDamaged,
    MissingImage,
    MissingTool,
)

SOURCE = Path(__file__).parents[4] / "src"


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    """A copy of the real sources that a test may change."""
    real = Recipe()
    sources = tmp_path / "sources"
    for name in ("recipes", "guest", "providers"):
        shutil.copytree(getattr(real, name), sources / name)
    return Recipe(sources / "recipes", sources / "guest", sources / "providers")


@pytest.fixture
def images(tmp_path: Path, recipe: Recipe) -> ImageStore:
    return ImageStore(tmp_path / "images", recipe)


@pytest.fixture
def quick_kernel(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Kernel builds that write two small files; the list counts them."""
    asked: list[str] = []

    async def build(context: BuildContext, recipe: Recipe, out: Path) -> Ingredients:
        asked.append(context.folder.name)
        context.stage("kernel")
        (out / "vmlinux").write_bytes(b"\x7fELF kernel")
        (out / "initramfs.cpio").write_bytes(b"070701 initramfs")
        return Ingredients({"kernel": f"made-up {len(asked)}"}, {"kernel": f"1.{len(asked)}"})

    monkeypatch.setattr(store, "build_kernel", build)
    return asked


def silent(_: BuildProgress) -> None:
    pass


# Recipes


@pytest.mark.parametrize(
    ("changed", "kinds"),
    [
        ("guest/machine/boot.sh", {"cli", "browser"}),
        ("guest/machine/phases.sh", {"kernel", "cli", "browser"}),
        ("guest/machine/initramfs-init.sh", {"kernel"}),
        ("guest/machine/inittab.cli", {"cli", "browser"}),
        ("guest/machine/inittab.browser", {"browser"}),
        ("guest/machine/browser/browser.sh", {"browser"}),
        ("guest/browser_service/__main__.py", {"browser"}),
        ("recipes/kernel/modules", {"kernel"}),
        ("recipes/cli/packages", {"cli", "browser"}),
        ("recipes/browser/packages", {"browser"}),
        ("recipes/clis/package-lock.json", {"cli", "browser"}),
        ("recipes/adapters/package-lock.json", {"cli"}),
        ("providers/codex/provider.toml", {"cli", "browser"}),
        ("providers/gemini_cli/status.js", {"cli", "browser"}),
    ],
)
def test_source_change_changes_its_images(recipe: Recipe, changed: str, kinds: set[str]) -> None:
    before = {kind: recipe.hash(kind) for kind in ImageKind}
    with (recipe.recipes.parent / changed).open("a") as file:
        file.write("\n# changed\n")
    after = {kind: recipe.hash(kind) for kind in ImageKind}
    assert {kind.value for kind in ImageKind if before[kind] != after[kind]} == kinds


def test_suite_and_mirror_are_part_of_the_recipe(recipe: Recipe) -> None:
    elsewhere = Recipe(
        recipe.recipes, recipe.guest, recipe.providers, Distribution(mirror="http://mirror.example")
    )
    assert elsewhere.hash(ImageKind.CLI) != recipe.hash(ImageKind.CLI)


def test_python_caches_are_not_part_of_the_recipe(recipe: Recipe) -> None:
    before = recipe.hash(ImageKind.BROWSER)
    leftovers = recipe.browser_service / "__pycache__"
    leftovers.mkdir(exist_ok=True)
    (leftovers / "x.cpython-311.pyc").write_bytes(b"\0")
    assert recipe.hash(ImageKind.BROWSER) == before


def test_machine_scripts_parse_in_busybox() -> None:
    for script in source_files(Recipe().machine_files):
        if script.suffix == ".sh":
            subprocess.run(["busybox", "sh", "-n", script], check=True)


# Atomic builds


async def test_a_built_image_is_found_listed_and_verified(
    images: ImageStore, quick_kernel: list[str]
) -> None:
    assert images.find("kernel") is None
    with pytest.raises(MissingImage, match="kernel"):
        images.require("kernel")
    stages: list[str] = []
    built = await images.build("kernel", lambda progress: stages.append(progress.stage))
    assert stages == ["kernel", "checksums"]
    assert images.find("kernel") == built == images.named(built.name)
    assert images.list() == [built]
    assert built.kernel.read_bytes() == b"\x7fELF kernel"
    assert built.kernel.stat().st_mode & 0o777 == 0o444
    await images.verify(built)


async def test_second_build_reuses_and_renew_rebuilds(
    images: ImageStore, quick_kernel: list[str]
) -> None:
    first = await images.build("kernel", silent)
    assert await images.build("kernel", silent) == first
    assert len(quick_kernel) == 1
    renewed = await images.build("kernel", silent, renew=True)
    assert renewed.name != first.name
    assert images.find("kernel") == renewed
    assert images.named(first.name) == first


async def test_remove_deletes_only_that_image(images: ImageStore, quick_kernel: list[str]) -> None:
    first = await images.build("kernel", silent)
    second = await images.build("kernel", silent, renew=True)
    await images.remove(first)
    assert images.list() == [second]
    assert not first.folder.exists()


async def test_recipe_change_outdates_the_image(
    images: ImageStore, quick_kernel: list[str]
) -> None:
    built = await images.build("kernel", silent)
    (images.recipe.recipes / "kernel" / "modules").write_text("overlay\n")
    assert images.find("kernel") is None
    assert images.named(built.name) == built


@pytest.mark.parametrize("damage", ["flip", "truncate", "remove"])
async def test_verify_detects_damage_and_names_the_file(
    images: ImageStore, quick_kernel: list[str], damage: str
) -> None:
    built = await images.build("kernel", silent)
    content = bytearray(built.initramfs.read_bytes())
    built.initramfs.unlink()
    content[3] ^= 1
    if damage == "flip":
        built.initramfs.write_bytes(content)
    elif damage == "truncate":
        built.initramfs.write_bytes(content[:5])
    with pytest.raises(ImageDamaged, match=r"initramfs\.cpio") as caught:
        await images.verify(built)
    assert "polydev image build kernel" in caught.value.hint


def test_folder_without_manifest_is_no_image(images: ImageStore) -> None:
    folder = images.root / "kernel-0123456789abcdef"
    folder.mkdir(parents=True)
    (folder / "vmlinux").write_bytes(b"half a kernel")
    assert images.list() == []
    with pytest.raises(MissingImage):
        images.named(folder.name)


@pytest.mark.parametrize("manifest", ["", "[]", "null", '{"kind": "kernel"}', '{"kind": "x"}'])
def test_broken_manifest_is_reported(images: ImageStore, manifest: str) -> None:
    folder = images.root / "kernel-0123456789abcdef"
    folder.mkdir(parents=True)
    (folder / "manifest.json").write_text(manifest)
    with pytest.raises(ImageDamaged, match="kernel-0123456789abcdef"):
        images.list()


@pytest.mark.parametrize("name", ["..", "../x", ".cache", "", "/etc"])
def test_name_cannot_leave_the_store(images: ImageStore, name: str) -> None:
    with pytest.raises(MissingImage):
        images.named(name)


async def test_failed_build_leaves_nothing_and_names_stage_and_log(
    images: ImageStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def build(context: BuildContext, recipe: Recipe, out: Path) -> Ingredients:
        context.stage("kernel package")
        (out / "vmlinux").write_bytes(b"half")
        await context.run(["sh", "-c", "echo the archive is gone; exit 7"])
        raise AssertionError("not reached")

    monkeypatch.setattr(store, "build_kernel", build)
    with pytest.raises(ImageBuildFailed, match=r"kernel package.*status 7.*archive is gone") as it:
        await images.build("kernel", silent)
    log = Path(it.value.hint.removeprefix("See "))
    assert "the archive is gone" in log.read_text()
    assert _remains(images) == []


@pytest.mark.parametrize("command", ["dd if=/dev/zero of=/dev/full count=1", "python"])
async def test_full_disk_is_reported_in_one_line(
    images: ImageStore, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    async def build(context: BuildContext, recipe: Recipe, out: Path) -> Ingredients:
        if command == "python":
            Path("/dev/full").write_bytes(b"x")
        await context.run(command.split())
        raise AssertionError("not reached")

    monkeypatch.setattr(store, "build_kernel", build)
    with pytest.raises(DiskFull, match=str(images.root)) as caught:
        await images.build("kernel", silent)
    assert "\n" not in caught.value.line()
    assert _remains(images) == []


async def test_lack_of_space_is_reported_before_the_build(
    images: ImageStore, quick_kernel: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    room = dict.fromkeys(ImageKind, 1 << 60)
    monkeypatch.setattr(store, "_NEEDED_BYTES", room)
    with pytest.raises(DiskFull, match="GiB needed"):
        await images.build("kernel", silent)
    assert quick_kernel == []


async def test_missing_tool_is_named_with_its_package(
    images: ImageStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(MissingTool, match="apt-cache") as caught:
        await images.build("kernel", silent)
    assert caught.value.hint == "Install it: apt-get install apt"
    assert _remains(images) == []


# Locking and cancellation


async def test_two_builders_of_one_kind_build_once(
    images: ImageStore, quick_kernel: list[str]
) -> None:
    other = ImageStore(images.root, images.recipe)
    built = await asyncio.gather(*(which.build("kernel", silent) for which in (images, other)))
    assert built[0] == built[1]
    assert len(quick_kernel) == 1


async def test_build_waits_for_the_lock_and_can_be_cancelled(
    images: ImageStore, quick_kernel: list[str]
) -> None:
    images.root.mkdir()
    script = (
        "import fcntl, sys; f = open(sys.argv[1], 'w'); fcntl.flock(f, fcntl.LOCK_EX);"
        "print('held', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script, str(images.root / ".lock")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as holder:
        assert holder.stdin is not None
        assert holder.stdout is not None
        holder.stdout.readline()
        waiting = asyncio.create_task(images.build("kernel", silent))
        done, _ = await asyncio.wait([waiting], timeout=0.3)
        assert not done
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        assert waiting.cancelled()
        second = asyncio.create_task(images.build("kernel", silent))
        done, _ = await asyncio.wait([second], timeout=0.3)
        assert not done
        holder.stdin.close()
        assert (await second).kind == "kernel"
    assert len(quick_kernel) == 1


async def test_leftovers_of_dead_builders_are_removed(
    images: ImageStore, quick_kernel: list[str]
) -> None:
    dead = images.root / ".building-browser-dead"
    (dead / "root" / "bin").mkdir(parents=True)
    await images.build("kernel", silent)
    assert not dead.exists()


async def test_cancelled_build_ends_its_programs_and_removes_its_folder(
    images: ImageStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = asyncio.Event()

    async def build(context: BuildContext, recipe: Recipe, out: Path) -> Ingredients:
        await context.run(
            ["sh", "-c", 'sleep 4321 & echo "$0"; wait', str(context.folder)],
            on_line=lambda _: begun.set(),
        )
        raise AssertionError("not reached")

    monkeypatch.setattr(store, "build_kernel", build)
    building = asyncio.create_task(images.build("kernel", silent))
    await asyncio.wait_for(begun.wait(), 30)
    building.cancel()
    await asyncio.gather(building, return_exceptions=True)
    assert building.cancelled()
    assert _processes_naming(str(images.root)) == []
    assert _remains(images) == []


async def test_killed_build_leaves_no_program_and_no_image(
    tmp_path: Path,
) -> None:
    root = tmp_path / "images"
    script = (
        "import asyncio, sys; from pathlib import Path; from polydev.hostagent.images import *;"
        "asyncio.run(ImageStore(Path(sys.argv[1])).build('cli',"
        " lambda p: print(p.stage, p.fraction, flush=True)))"
    )
    builder = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", script, str(root)),
        stdout=asyncio.subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": str(SOURCE)},
    )
    assert builder.stdout is not None
    while await asyncio.wait_for(builder.stdout.readline(), 60) != b"packages 0.05\n":
        assert builder.returncode is None
    programs = _processes_naming(str(root))
    assert programs
    watches = [os.pidfd_open(pid) for pid in programs if pid != builder.pid]
    builder.send_signal(signal.SIGKILL)
    await builder.wait()
    loop = asyncio.get_running_loop()
    for watch in watches:
        ended = loop.create_future()
        loop.add_reader(watch, lambda ended=ended: ended.done() or ended.set_result(None))
        await asyncio.wait_for(ended, 30)
        loop.remove_reader(watch)
        os.close(watch)
    assert _processes_naming(str(root)) == []
    images = ImageStore(root)
    assert images.list() == []
    assert len(_remains(images)) == 1, "the unfinished folder has a temporary name"


async def test_manifest_matches_its_documentation(
    images: ImageStore, quick_kernel: list[str]
) -> None:
    built = await images.build("kernel", silent)
    manifest = json.loads((built.folder / "manifest.json").read_text())
    assert set(manifest) == {"kind", "hash", "created_at", "files", "inputs", "versions"}
    assert built.name == f"kernel-{manifest['hash'][:16]}"
    assert set(manifest["files"]) == {"vmlinux", "initramfs.cpio"}


def _remains(images: ImageStore) -> list[str]:
    found = {"logs", ".lock", ".cache"}
    return [path.name for path in images.root.iterdir() if path.name not in found]


def _processes_naming(text: str) -> list[int]:
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if text.encode() in path.read_bytes():
                found.append(int(path.parent.name))
        except (FileNotFoundError, ProcessLookupError):
            continue
    return found
