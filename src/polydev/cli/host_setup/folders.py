"""The state folder and what is in it from the beginning: the same that `polydev up` makes."""

from __future__ import annotations

import shutil
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from polydev.cli.host_setup.accounts import user_ids
from polydev.cli.host_setup.resources import State, Status
from polydev.cli.host_setup.target_root import Shape, TargetRoot
from polydev.shared.errors import BadSettings


@dataclass(frozen=True, slots=True)
class StateFolder:
    """Where everything of people and machines lies."""

    place: TargetRoot
    user: str
    state_dir: Path
    name: str = "folders"

    def check(self) -> Status:
        for path, shape in self._wanted():
            if not self.place.is_folder(path, shape):
                words = f"{path} is not a folder of mode {shape.mode:04o}, {self._owner(shape)}'s"
                return Status(self.name, State.MISSING, words, "`polydev host setup` puts it right")
        for above in self.state_dir.parents:
            if not self.place.at(above).stat().st_mode & stat.S_IXOTH:
                raise BadSettings(
                    f"POLYDEV_STATE_DIR is {self.state_dir}, but {above} is closed to the user "
                    f"{self.user}",
                    hint="The controller does not run as root: take a folder that all may enter",
                )
        return Status(self.name, State.OK, f"{self.state_dir} is as it must be")

    def apply(self) -> None:
        for path, shape in self._wanted():
            self.place.folder(path, shape)

    def revert(self, *, purge: bool) -> Sequence[str]:
        """Folders that are empty go; with `purge` everything, where the folder was made here."""
        there = self.place.at(self.state_dir)
        if purge and self.place.was_created(f"folder {self.state_dir}") and there.is_dir():
            for path in there.iterdir():
                if path.is_dir() and not path.is_symlink():
                    shutil.rmtree(path)
                else:
                    path.unlink()
        for name in ("controller", "sockets", "logs"):
            self.place.remove_empty(self.state_dir / name)
        self.place.remove_empty(self.state_dir)
        if not there.exists():
            return []
        if purge:
            return [f"{self.state_dir}, which was there before the set-up: remove it yourself"]
        return [f"{self.state_dir}, with the data of people and machines"]

    def _wanted(self) -> Sequence[tuple[Path, Shape]]:
        uid, gid = user_ids(self.place, self.user) or (-1, -1)
        return (
            (self.state_dir, Shape(0o755)),
            (self.state_dir / "controller", Shape(0o700, uid, gid)),
            (self.state_dir / "sockets", Shape(0o750, 0, gid)),
            (self.state_dir / "logs", Shape(0o750, 0, gid)),
        )

    def _owner(self, shape: Shape) -> str:
        return self.user if shape.uid else "root"
