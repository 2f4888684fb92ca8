"""Installed program: a copy of this one, its Python environment, and the command.

    /usr/local/lib/polydev/app-<hash>/   the copy, as for `up` (decision 0004)
    /usr/local/lib/polydev/app -> app-<hash>
    /usr/local/lib/polydev/env -> the current Python environment
    /usr/local/bin/polydev               the command, with the settings of this host

A link changes only when its new target is complete, so a unit always starts a whole version.
"""

from __future__ import annotations

import shutil
import stat
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from polydev.cli.host_setup.resource import State, Status
from polydev.cli.host_setup.target_root import CONFIG, LIBRARY, Shape, TargetRoot
from polydev.cli.supervisor import system_user
from polydev.shared.errors import Failed

COMMAND = "/usr/local/bin/polydev"

_SCRIPT = f"""\
#!/bin/sh
# Written by `polydev host setup`: the polydev command of this host, with the settings of its
# units. Variables that are set already take precedence.
if [ -r {CONFIG}/polydev.env ]; then
    while IFS= read -r line; do
        case $line in
            POLYDEV_*=* | PORT=*) printenv "${{line%%=*}}" >/dev/null || export "$line" ;;
        esac
    done <{CONFIG}/polydev.env
fi
export PYTHONPATH={LIBRARY}/app/src
exec {LIBRARY}/env/bin/python -P -m polydev.cli "$@"
"""


@dataclass(frozen=True, slots=True)
class Program:
    """Installed program."""

    target: TargetRoot
    name: str = "program"

    def check(self) -> Status:
        copy, wanted = f"app-{system_user.program_hash()}", f"{LIBRARY}/env -> {_environment()}"
        hint = "Run `polydev host setup`"
        if not self.target.is_link(f"{LIBRARY}/app", copy) or not self._copy(copy).is_dir():
            return Status(self.name, State.MISSING, f"{LIBRARY}/app is not this version", hint)
        if not self.target.is_link(f"{LIBRARY}/env", _environment()):
            return Status(self.name, State.MISSING, f"There is no {wanted}", hint)
        if not self.target.is_file(COMMAND, _SCRIPT.encode(), Shape(0o755)):
            return Status(self.name, State.MISSING, f"{COMMAND} is not of this version", hint)
        self._require_readable(Path(_environment()))
        return Status(self.name, State.OK, f"{LIBRARY}/{copy}, run by {_environment()}/bin/python")

    def apply(self) -> None:
        self.target.folder(LIBRARY, Shape(0o755))
        # Keep the previous copy until the next setup: running programs load modules lazily.
        before = self._linked()
        copy = system_user.copy_program(
            self.target.at(LIBRARY), keep=before, runs_in=Path(LIBRARY)
        ).parent
        self.target.link(f"{LIBRARY}/app", copy.name)
        self.target.link(f"{LIBRARY}/env", _environment())
        self.target.file(COMMAND, _SCRIPT.encode(), Shape(0o755))

    def revert(self, *, purge: bool) -> Sequence[str]:
        self.target.remove(COMMAND)
        for name in ("app", "env"):
            self.target.remove(f"{LIBRARY}/{name}")
        for copy in self.target.at(LIBRARY).glob("app-*"):
            shutil.rmtree(copy)
        self.target.remove_empty(LIBRARY)
        return []

    def _copy(self, name: str) -> Path:
        return self.target.at(f"{LIBRARY}/{name}")

    def _linked(self) -> str:
        try:
            return str(self.target.at(f"{LIBRARY}/app").readlink())
        except OSError:
            return ""

    def _require_readable(self, prefix: Path) -> None:
        """Raises Failed if the controller's user cannot run the environment's Python."""
        for folder in (prefix / "bin", prefix, *prefix.parents):
            if not folder.stat().st_mode & stat.S_IXOTH:
                raise Failed(
                    f"Ordinary users cannot enter {folder}, so the controller cannot run {prefix}",
                    hint="Create the environment with `make setup`, and run this command from it",
                )


def _environment() -> str:
    # Resolved, because the installed program runs through the link.
    return str(Path(sys.prefix).resolve())
