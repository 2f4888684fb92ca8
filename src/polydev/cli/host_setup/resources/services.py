"""Running services. The last resource, because services need all others.

Machines keep running while the host agent and the controller restart.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from polydev.cli.host_setup.resource import State, Status
from polydev.cli.host_setup.resources import units
from polydev.cli.host_setup.resources.settings_files import CONTROLLER_SETTINGS, KEY, SETTINGS
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
"""Files that each unit reads at start; a newer one means that the unit must restart."""


@dataclass(frozen=True, slots=True)
class Services:
    """Host agent and controller, running with the installed files."""

    target: TargetRoot
    settings: HostSettings
    name: str = "services"

    def check(self) -> Status:
        if not units.is_booted(self.target):
            message = "systemd is not running here; the units start at boot"
            return Status(self.name, State.OK, message)
        if hindrance := self._blocker():
            return hindrance
        for unit in units.STARTED:
            if fault := self._problem(unit):
                return Status(self.name, State.MISSING, fault, "Run `polydev host setup`")
        return Status(self.name, State.OK, f"{' and '.join(units.STARTED)} are running")

    def apply(self) -> None:
        if self._blocker():
            return
        for unit in units.STARTED:
            if self._problem(unit):
                _restart(unit)

    def revert(self, *, purge: bool) -> Sequence[str]:
        """Do nothing: `removal` has stopped them."""
        return []

    def _blocker(self) -> Status | None:
        """Status that prevents a start; None if nothing does."""
        pid = Instance(self.settings.state_dir).pid()
        if pid is not None:
            message = f"`polydev up` is running (process {pid})"
            hint = "Run `polydev down`, then `polydev host setup` again; machines keep running"
            return Status(self.name, State.MISSING, message, hint)
        if not capabilities_of(self.settings.driver).needs_images:
            return None
        try:
            ImageStore(self.settings.images_dir).require_all()
        except PolydevError as error:
            hint = "Run `polydev image build`, then `polydev host setup` again"
            return Status(self.name, State.MISSING, error.message, hint)
        return None

    def _problem(self, unit: str) -> str | None:
        shown = units.systemctl(
            "show", unit, "--timestamp=unix", "--property=ActiveState,ExecMainStartTimestamp"
        )
        properties = dict(line.split("=", 1) for line in shown.splitlines() if "=" in line)
        if properties.get("ActiveState") != "active":
            return f"{unit} is not running ({properties.get('ActiveState', 'unknown')})"
        started = properties.get("ExecMainStartTimestamp", "").removeprefix("@")
        if started.isdigit() and int(started) < self._newest_mtime(_INPUTS[unit]):
            return f"{unit} runs an older installation"
        return None

    def _newest_mtime(self, paths: Sequence[str]) -> int:
        """Newest modification time of the files, in seconds."""
        newest = 0
        for path in paths:
            with suppress(OSError):
                newest = max(newest, int(os.lstat(self.target.at(Path(path))).st_mtime))
        return newest


def _restart(unit: str) -> None:
    """Restart a unit and wait until it is ready. Raises Failed with its last log line."""
    try:
        units.systemctl("restart", unit)
    except Failed as error:
        raise Failed(
            f"{unit} does not start: {_last_log_line(unit) or error.message}",
            hint=f"See `journalctl -u {unit}`",
        ) from None


def _last_log_line(unit: str) -> str:
    """Last line that the unit's program printed."""
    output = subprocess.run(
        ["journalctl", f"--unit={unit}", "--lines=50", "--output=json", "--no-pager", "--quiet"],
        capture_output=True,
        text=True,
        check=False,
        timeout=_JOURNAL_LIMIT_S,
    )
    last = ""
    for line in output.stdout.splitlines():
        entry = json.loads(line)
        if entry.get("_TRANSPORT") == "stdout" and isinstance(entry.get("MESSAGE"), str):
            last = entry["MESSAGE"]
    return last[:300]
