"""The copy of the program for the controller's user, and its folders."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from polydev.cli.supervisor import system_user
from polydev.hostagent.images import ImageKind
from polydev.hostagent.images.recipe import Recipe
from polydev.shared.errors import BadSettings

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="folders change hands")


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that every user can enter, unlike pytest's own."""
    with tempfile.TemporaryDirectory(dir="/var/tmp") as name:
        Path(name).chmod(0o755)
        yield Path(name)


OTHER_USER = system_user.Account("nobody", 65534, "nogroup", 65534)


def test_the_copy_runs_as_another_user_and_has_the_same_recipes(open_folder: Path) -> None:
    program = system_user.copy_program(open_folder)
    assert system_user.copy_program(open_folder) == program, "created once"
    output = subprocess.run(
        [*OTHER_USER.setpriv(), sys.executable, "-P", "-c", HASHES],
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(program)},
        capture_output=True,
        text=True,
        check=False,
    )
    ours = [Recipe().hash(kind) for kind in ImageKind]
    assert output.stdout.split() == [str(program / "polydev" / "__init__.py"), *ours], output.stderr


HASHES = """
import polydev
from polydev.hostagent.images import ImageKind
from polydev.hostagent.images.recipe import Recipe
print(polydev.__file__, *(Recipe().hash(kind) for kind in ImageKind))
"""


def test_older_copies_are_deleted(tmp_path: Path) -> None:
    old = tmp_path / "app-0123456789abcdef"
    old.mkdir()
    system_user.copy_program(tmp_path)
    assert not old.exists()


def test_folders_have_the_right_owners(open_folder: Path) -> None:
    state = open_folder / "state"
    system_user.prepare_folders(state, OTHER_USER)
    controller = (state / "controller").stat()
    assert (controller.st_uid, controller.st_mode & 0o777) == (65534, 0o700)
    sockets = (state / "sockets").stat()
    assert (sockets.st_uid, sockets.st_gid, sockets.st_mode & 0o777) == (0, 65534, 0o750)


def test_a_state_folder_that_the_controller_cannot_enter_is_refused(tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    with pytest.raises(BadSettings, match=r"POLYDEV_STATE_DIR .* nobody cannot enter"):
        system_user.prepare_folders(closed / "state", OTHER_USER)


def test_root_is_refused_as_the_controllers_user() -> None:
    with pytest.raises(BadSettings, match="POLYDEV_USER is root"):
        system_user.account("root")
