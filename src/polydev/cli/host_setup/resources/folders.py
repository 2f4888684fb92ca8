"""State folder and its initial subfolders, as `polydev up` creates them."""

from __future__ import annotations

import shutil
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from polydev.cli.host_setup.resource import State, Status
from polydev.cli.host_setup.resources.accounts import user_ids
from polydev.cli.host_setup.target_root import Shape, TargetRoot
from polydev.shared.errors import BadSettings


@dataclass(frozen=True, slots=True)
class StateFolder:
    """Folder of all data of users and machines."""

    target: TargetRoot
    user: str
    state_dir: Path
    name: str = "folders"

    def check(self) -> Status:
        for path, shape in self._wanted():
            if not self.target.is_folder(path, shape):
                owner = self._owner(shape)
                message = f"{path} is not a folder of {owner} with mode {shape.mode:04o}"
                return Status(self.name, State.MISSING, message, "Run `polydev host setup`")
        for above in self.state_dir.parents:
            if not self.target.at(above).stat().st_mode & stat.S_IXOTH:
                raise BadSettings(
                    f"POLYDEV_STATE_DIR is {self.state_dir}, but {self.user} cannot enter {above}",
                    hint="The controller is not root. Use a folder that all users can enter",
                )
        return Status(self.name, State.OK, f"{self.state_dir} is correct")

    def apply(self) -> None:
        for path, shape in self._wanted():
            self.target.folder(path, shape)

    def revert(self, *, purge: bool) -> Sequence[str]:
        """Remove empty folders; with `purge` everything, if `host setup` created the folder."""
        there = self.target.at(self.state_dir)
        if purge and self.target.was_created(f"folder {self.state_dir}") and there.is_dir():
            for path in there.iterdir():
                if path.is_dir() and not path.is_symlink():
                    shutil.rmtree(path)
                else:
                    path.unlink()
        for name in ("controller", "sockets", "logs"):
            self.target.remove_empty(self.state_dir / name)
        self.target.remove_empty(self.state_dir)
        if not there.exists():
            return []
        if purge:
            return [f"{self.state_dir}, which existed before the setup; remove it yourself"]
        return [f"{self.state_dir}, with the data of users and machines"]

    def _wanted(self) -> Sequence[tuple[Path, Shape]]:
        uid, gid = user_ids(self.target, self.user) or (-1, -1)
        return (
            (self.state_dir, Shape(0o755)),
            (self.state_dir / "controller", Shape(0o700, uid, gid)),
            (self.state_dir / "sockets", Shape(0o750, 0, gid)),
            (self.state_dir / "logs", Shape(0o750, 0, gid)),
        )

    def _owner(self, shape: Shape) -> str:
        return self.user if shape.uid else "root"
