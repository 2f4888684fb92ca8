"""The units, running what is installed: the last item, since all others are what they need.

Machines go on while the host agent and the controller are started again.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from polydev.cli.host_setup import units
from polydev.cli.host_setup.resources import State, Status
from polydev.cli.host_setup.settings_files import CONTROLLER_SETTINGS, KEY, SETTINGS
from polydev.cli.host_setup.target_root import LIBRARY, TargetRoot
from polydev.cli.supervisor.pidfile import Instance
from polydev.hostagent.images import ImageStore
from polydev.hostagent.settings import HostSettings
from polydev.hostagent.vmm.driver_selection import capabilities_of
from polydev.shared.errors import Failed, PolydevError

_JOURNAL_LIMIT_S = 30
_SHARED_INPUTS = (f"{LIBRARY}/app", f"{LIBRARY}/env", SETTINGS)
_INPUTS = {
    units.AGENT: (*_SHARED_INPUTS, f"{LIBRARY}/firecracker", f"{units.FOLDER}/{units.AGENT}"),
    units.CONTROLLER: (
        *_SHARED_INPUTS,
        CONTROLLER_SETTINGS,
        KEY,
        f"{units.FOLDER}/{units.CONTROLLER}",
    ),
}
"""What each unit was started with: what is younger than the unit has not reached it."""


@dataclass(frozen=True, slots=True)
class Services:
    """Host agent and controller, running."""

    place: TargetRoot
    settings: HostSettings
    name: str = "services"

    def check(self) -> Status:
        if not units.is_booted(self.place):
            words = "systemd does not run here: the units start with the host"
            return Status(self.name, State.OK, words)
        if hindrance := self._blocker():
            return hindrance
        for unit in units.STARTED:
            if fault := self._problem(unit):
                return Status(self.name, State.MISSING, fault, "`polydev host setup` starts it")
        return Status(self.name, State.OK, f"{' and '.join(units.STARTED)} run")

    def apply(self) -> None:
        if self._blocker():
            return
        for unit in units.STARTED:
            if self._problem(unit):
                _restart(unit)

    def revert(self, *, purge: bool) -> Sequence[str]:
        """`units.py` stops them; before that, `removal.py` ends the machines."""
        return []

    def _blocker(self) -> Status | None:
        """Why they are not started, if they are not."""
        pid = Instance(self.settings.state_dir).pid()
        if pid is not None:
            words = f"Polydev runs already, as `polydev up` (process {pid})"
            hint = "`polydev down`, then `polydev host setup` again: machines go on"
            return Status(self.name, State.MISSING, words, hint)
        if self.settings.driver == "simulated":
            return None
        try:
            ImageStore(self.settings.images_dir).require_all()
        except PolydevError as error:
            hint = "`polydev image build`, then `polydev host setup` again"
            return Status(self.name, State.MISSING, error.message, hint)
        return None

    def _problem(self, unit: str) -> str | None:
        shown = units.systemctl(
            "show", unit, "--timestamp=unix", "--property=ActiveState,ExecMainStartTimestamp"
        )
        told = dict(line.split("=", 1) for line in shown.splitlines() if "=" in line)
        if told.get("ActiveState") != "active":
            return f"{unit} does not run ({told.get('ActiveState', 'unknown')})"
        started = told.get("ExecMainStartTimestamp", "").removeprefix("@")
        if started.isdigit() and int(started) < self._newest_mtime(_INPUTS[unit]):
            return f"{unit} runs what was installed before"
        return None

    def _newest_mtime(self, paths: Sequence[str]) -> int:
        """When the youngest of them was put where it is, in seconds."""
        newest = 0
        for path in paths:
            with suppress(OSError):
                newest = max(newest, int(os.lstat(self.place.at(Path(path))).st_mtime))
        return newest


def _restart(unit: str) -> None:
    """Start a unit anew, until it answers. Raises Failed with the program's last words."""
    try:
        units.systemctl("restart", unit)
    except Failed as error:
        raise Failed(
            f"{unit} does not start: {_last_words(unit) or error.message}",
            hint=f"`journalctl -u {unit}` holds the rest",
        ) from None


def _last_words(unit: str) -> str:
    """The last line that a unit's program itself said."""
    said = subprocess.run(
        ["journalctl", f"--unit={unit}", "--lines=50", "--output=json", "--no-pager", "--quiet"],
        capture_output=True,
        text=True,
        check=False,
        timeout=_JOURNAL_LIMIT_S,
    )
    words = ""
    for line in said.stdout.splitlines():
        entry = json.loads(line)
        if entry.get("_TRANSPORT") == "stdout" and isinstance(entry.get("MESSAGE"), str):
            words = entry["MESSAGE"]
    return words[:300]
