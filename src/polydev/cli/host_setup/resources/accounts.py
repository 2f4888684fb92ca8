"""Users of a host: the controller's user, and the uids of the machines' VMMs.

The account files below the target root are read, not those of this process (`getpwnam`), so that
setting up another root works. The programs of shadow-utils write them.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from polydev.cli.host_setup.resource import State, Status
from polydev.cli.host_setup.target_root import TargetRoot
from polydev.hostagent.system.sandbox import UID_BASE
from polydev.shared.errors import BadSettings, Failed, MissingTool

UIDS = 65536
"""Number of uids from UID_BASE on that must be unused: more than a host has machines."""

_FIELDS = 4
_LIMIT_S = 60


@dataclass(frozen=True, slots=True)
class ControllerUser:
    """System user of the controller, without home, shell and password."""

    target: TargetRoot
    user: str
    home: Path
    """Folder that it owns; the user stays as long as the folder exists."""
    name: str = "user"

    def check(self) -> Status:
        found = user_ids(self.target, self.user)
        if found is None:
            hint = "Run `polydev host setup`"
            return Status(self.name, State.MISSING, f"There is no user {self.user}", hint)
        if found[0] == 0:
            raise BadSettings(
                f"POLYDEV_USER is {self.user}, which is root",
                hint="Set it to an ordinary user: the controller must not run as root",
            )
        return Status(self.name, State.OK, f"{self.user} is uid {found[0]}, gid {found[1]}")

    def apply(self) -> None:
        self.target.record(f"user {self.user}")
        self._run(
            *("useradd", "--system", "--user-group", "--no-create-home"),
            *("--home-dir=/nonexistent", "--shell=/usr/sbin/nologin"),
        )

    def revert(self, *, purge: bool) -> Sequence[str]:
        # While its folder exists, the user stays: another new user could get its uid.
        if not self.target.was_created(f"user {self.user}"):
            return []
        if self.target.at(self.home).exists():
            return [f"the user {self.user}, which owns {self.home}"]
        if user_ids(self.target, self.user) is not None:
            self._run("userdel")
        if any(fields[0] == self.user for fields in _lines(self.target.at("/etc/group"))):
            self._run("groupdel")  # userdel does it only where login.defs says so
        self.target.forget(f"user {self.user}")
        return []

    def _run(self, program: str, *options: str) -> None:
        where = [] if self.target.is_this_machine else [f"--prefix={self.target.root}"]
        try:
            subprocess.run(
                [program, *where, *options, "--", self.user],
                check=True,
                capture_output=True,
                text=True,
                timeout=_LIMIT_S,
            )
        except FileNotFoundError:
            raise MissingTool(
                f"{program} is not installed", hint="Install the Debian package passwd"
            ) from None
        except subprocess.CalledProcessError as error:
            raise Failed(
                f"{program} {self.user}: {error.stderr.strip()[-200:]}",
                hint="Correct this, or set POLYDEV_USER to another user",
            ) from None


@dataclass(frozen=True, slots=True)
class MachineUids:
    """Uids of the machines' VMMs, from UID_BASE on. No other account may use them."""

    target: TargetRoot
    name: str = "uids"

    def check(self) -> Status:
        last = UID_BASE + UIDS - 1
        for file, who, first, count in _ranges(self.target):
            if first <= last and first + count > UID_BASE:
                return Status(
                    self.name,
                    State.MISSING,
                    f"{self.target.at(file)} assigns ids between {UID_BASE} and {last} to {who}, "
                    "but machines run as these",
                    f"Give {who} other ids: a process with a machine's uid can read and kill it",
                )
        return Status(self.name, State.OK, f"{UID_BASE} to {last} are unused")

    def apply(self) -> None:
        """Do nothing: the administrator has to change the accounts."""

    def revert(self, *, purge: bool) -> Sequence[str]:
        return []


def user_ids(target: TargetRoot, user: str) -> tuple[int, int] | None:
    """Uid and gid of a user below the target root."""
    for fields in _lines(target.at("/etc/passwd")):
        if fields[0] == user and len(fields) >= _FIELDS and fields[2].isdigit():
            return int(fields[2]), int(fields[3])
    return None


def group_name(target: TargetRoot, user: str) -> str:
    """Name of a user's primary group; the user's name if the group is missing."""
    ids = user_ids(target, user)
    for fields in _lines(target.at("/etc/group")):
        if ids and len(fields) >= _FIELDS and fields[2] == str(ids[1]):
            return fields[0]
    return user


def _ranges(target: TargetRoot) -> Iterator[tuple[str, str, int, int]]:
    """Yield file, name, first id and count of users, groups and subordinate ids."""
    for file in ("/etc/passwd", "/etc/group"):
        for fields in _lines(target.at(file)):
            if len(fields) >= _FIELDS and fields[2].isdigit():
                yield file, fields[0], int(fields[2]), 1
    for file in ("/etc/subuid", "/etc/subgid"):
        for fields in _lines(target.at(file)):
            if len(fields) == 3 and fields[1].isdigit() and fields[2].isdigit():
                yield file, fields[0], int(fields[1]), int(fields[2])


def _lines(path: Path) -> list[list[str]]:
    try:
        text = path.read_text("utf-8", "replace")
    except FileNotFoundError:
        return []
    return [line.split(":") for line in text.splitlines() if line]
