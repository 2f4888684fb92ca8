"""Test that a repeated host setup completes an interrupted one.

The interpreter announces each effect, such as a file write, a rename or a program start
(`sys.addaudithook`). A child process kills itself before the n-th effect, for every n.
"""

from __future__ import annotations

import os
import platform
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from setup_world import VERSION, archive, bare_root, tree

from polydev.cli.host_setup.resource import Resource, State
from polydev.cli.host_setup.resources.firecracker import Firecracker
from polydev.cli.host_setup.resources.folders import StateFolder
from polydev.cli.host_setup.resources.kernel import Modules
from polydev.cli.host_setup.resources.release import Release
from polydev.cli.host_setup.resources.settings_files import SettingsFiles
from polydev.cli.host_setup.resources.units import Units
from polydev.cli.host_setup.target_root import TargetRoot

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="files change hands")

EFFECTS = frozenset(
    (
        *("os.mkdir", "os.rename", "os.symlink", "os.remove", "os.rmdir", "os.chmod", "os.chown"),
        *("shutil.rmtree", "shutil.copyfile", "subprocess.Popen"),
    )
)
STATE_DIR = Path("/var/lib/polydev")
KILLED = 9


def all_resources(target: TargetRoot, source: Path, sha256: str) -> list[Resource]:
    release = Release(VERSION, platform.machine(), sha256)
    return [
        StateFolder(target, "nobody", STATE_DIR),
        SettingsFiles(target, "nobody"),
        Modules(target),
        Firecracker(target, release, source, "auto"),
        Units(target, "nobody", STATE_DIR),
    ]


def apply_all(items: Sequence[Resource]) -> None:
    for item in items:
        if item.check().state is State.MISSING:
            item.apply()
        assert item.check().state is State.OK, item.check()


def revert_all(items: Sequence[Resource]) -> None:
    for item in reversed(items):
        assert list(item.revert(purge=True)) == []


def is_killed_before(effect: int, work: Callable[[], None]) -> bool:
    """Run in a child that ends before its n-th effect. False: it completed."""
    child = os.fork()
    if child == 0:
        left = [effect]

        def count(event: str, arguments: tuple[object, ...]) -> None:
            is_write = (
                event == "open" and isinstance(arguments[2], int) and arguments[2] & os.O_CREAT
            )
            if event in EFFECTS or is_write:
                left[0] -= 1
                if left[0] == 0:
                    os._exit(KILLED)

        sys.addaudithook(count)
        try:
            work()
        except BaseException:
            os._exit(1)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    assert code in (0, KILLED), "the next run failed on the leftovers"
    return code == KILLED


@pytest.fixture
def memory() -> Iterator[Path]:
    """Use a folder in memory, as syncing many small files to disk is slow."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as name:
        yield Path(name)


@pytest.fixture
def source(tmp_path: Path) -> tuple[Path, str]:
    return tmp_path / "a.tgz", archive(tmp_path / "a.tgz")


def test_interrupted_apply_is_completed_by_the_next(memory: Path, source: tuple[Path, str]) -> None:
    effect, whole = 0, None
    killed = True
    while killed:
        effect += 1
        folder = memory / str(effect)
        folder.mkdir()
        target = TargetRoot(bare_root(folder))
        before = tree(target.root)
        items = all_resources(target, *source)
        killed = is_killed_before(effect, lambda items=items: apply_all(items))  # type: ignore[misc]
        apply_all(items)
        now = set(tree(target.root))
        whole = whole or now
        assert now == whole, f"killed before effect {effect}"
        revert_all(items)
        assert tree(target.root) == before, f"killed before effect {effect}"
    assert effect > 40, "setup has more effects"


def test_interrupted_revert_is_completed_by_the_next(
    memory: Path, source: tuple[Path, str]
) -> None:
    target = TargetRoot(bare_root(memory))
    before = tree(target.root)
    items = all_resources(target, *source)
    effect, killed = 0, True
    while killed:
        effect += 1
        apply_all(items)
        killed = is_killed_before(effect, lambda: revert_all(items))
        revert_all(items)
        assert tree(target.root) == before, f"killed before effect {effect}"
    assert effect > 20
