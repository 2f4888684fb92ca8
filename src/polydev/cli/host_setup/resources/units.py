"""systemd units: written from `deploy/` and enabled.

Below another root than this machine's, nothing is started. Drop-ins (`systemctl edit`) belong to
the administrator and stay.
"""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from polydev.cli.host_setup.resource import State, Status
from polydev.cli.host_setup.resources.accounts import group_name
from polydev.cli.host_setup.resources.kernel import which
from polydev.cli.host_setup.target_root import Shape, TargetRoot
from polydev.hostagent.images.recipe import Recipe
from polydev.shared.errors import Failed, MissingTool

FOLDER = "/etc/systemd/system"
MACHINES, AGENT, CONTROLLER = (
    "polydev-machines.service",
    "polydev-hostd.service",
    "polydev-controller.service",
)
UNITS = (MACHINES, AGENT, CONTROLLER)
STARTED = (AGENT, CONTROLLER)
_SLICE = "polydev.slice"
"""systemd creates it for the units that name it."""
_SHAPE = Shape(0o644)
_WANTS = f"{FOLDER}/multi-user.target.wants"
_RUNNING = Path("/run/systemd/system")
"""Exists if systemd is the init of this machine. Source: sd_booted(3)."""

_START_LIMIT_S = 300


@dataclass(frozen=True, slots=True)
class Units:
    """Unit files, enabled at boot."""

    target: TargetRoot
    user: str
    state_dir: Path
    name: str = "units"

    def check(self) -> Status:
        hint = "Run `polydev host setup`"
        for unit in UNITS:
            if not self.target.is_file(f"{FOLDER}/{unit}", self.content(unit), _SHAPE):
                return Status(self.name, State.MISSING, f"{unit} is not of this version", hint)
        for unit in STARTED:
            if not self.target.is_link(f"{_WANTS}/{unit}", f"{FOLDER}/{unit}"):
                return Status(self.name, State.MISSING, f"{unit} is not enabled at boot", hint)
        return Status(self.name, State.OK, f"{', '.join(UNITS)} in {FOLDER}")

    def apply(self) -> None:
        for unit in UNITS:
            self.target.file(f"{FOLDER}/{unit}", self.content(unit), _SHAPE)
        for unit in STARTED:
            self.target.link(f"{_WANTS}/{unit}", f"{FOLDER}/{unit}")
        if is_booted(self.target):
            systemctl("daemon-reload")

    def revert(self, *, purge: bool) -> Sequence[str]:
        if is_booted(self.target):
            there = [unit for unit in UNITS if self.target.at(f"{FOLDER}/{unit}").exists()]
            for unit in (*reversed(there), _SLICE):
                systemctl("stop", unit)
        for unit in UNITS:
            self.target.remove(f"{_WANTS}/{unit}")
            self.target.remove(f"{FOLDER}/{unit}")
        if is_booted(self.target):
            systemctl("daemon-reload")
            subprocess.run(["systemctl", "reset-failed", *UNITS], capture_output=True, check=False)
        return []

    def content(self, unit: str) -> bytes:
        """Content of a unit for this host. Raises Failed if there is no `deploy/`."""
        template = Recipe().recipes.parent / "deploy" / unit
        try:
            text = template.read_text("utf-8")
        except OSError as error:
            raise Failed(f"Cannot read {template} ({error.strerror})") from None
        values = {
            "@USER@": self.user,
            "@GROUP@": group_name(self.target, self.user),
            "@STATE_DIR@": str(self.state_dir),
        }
        for name, value in values.items():
            text = text.replace(name, value)
        return text.encode()


def is_booted(target: TargetRoot) -> bool:
    """Check that systemd runs the system of this root."""
    return target.is_this_machine and _RUNNING.is_dir()


def is_installed(state_dir: Path) -> bool:
    """Check that systemd runs this machine and that units exist for a state folder."""
    if not is_booted(TargetRoot()):
        return False
    try:
        unit = Path(FOLDER, AGENT).read_text("utf-8")
    except OSError:
        return False
    return f"POLYDEV_STATE_DIR={state_dir} " in unit


def is_active(unit: str) -> bool:
    """Check that a unit is active. Raises Failed, MissingTool."""
    return systemctl("show", unit, "--property=ActiveState").strip() == "ActiveState=active"


def systemctl(*arguments: str) -> str:
    """Run systemctl and return its output. Raises Failed, MissingTool."""
    program = which("systemctl")
    if program is None:
        raise MissingTool("systemctl is not installed", hint="Install the Debian package systemd")
    try:
        done = subprocess.run(
            [program, "--no-ask-password", *arguments],
            capture_output=True,
            text=True,
            check=False,
            timeout=_START_LIMIT_S,
        )
    except subprocess.TimeoutExpired:
        raise Failed(
            f"systemctl {' '.join(arguments)} took longer than {_START_LIMIT_S} s"
        ) from None
    if done.returncode != 0:
        raise Failed(
            f"systemctl {' '.join(arguments)}: {done.stderr.strip()[-300:]}",
            hint="See `journalctl -u polydev-hostd -u polydev-controller`",
        )
    return done.stdout
