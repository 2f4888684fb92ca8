"""The ordinary user that the controller runs as, and the copy of the program that it can read.

A checkout may lie where that user cannot look (under /root, in a private temporary folder), and an
edit in it must not reach half a running program. So `up` runs a copy, owned by root, named by the
hash of what is in it.
"""

from __future__ import annotations

import compileall
import grp
import hashlib
import os
import pwd
import shutil
import stat
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

import polydev
from polydev.hostagent.images.recipe import Recipe, source_files
from polydev.shared.errors import BadSettings, Failed, MissingTool


@dataclass(frozen=True, slots=True)
class Account:
    """A system user and its group."""

    user: str
    uid: int
    group: str
    gid: int

    def setpriv(self) -> tuple[str, ...]:
        """Run what follows as this user, never to gain a right again, ending with its parent."""
        return (
            "setpriv",
            f"--reuid={self.user}",
            f"--regid={self.group}",
            "--init-groups",
            "--no-new-privs",
            "--inh-caps=-all",
            "--pdeathsig=TERM",
            "--",
        )


def account(user: str) -> Account:
    """The user of that name, made as a system user if it is missing."""
    try:
        found = pwd.getpwnam(user)
    except KeyError:
        found = _make(user)
    if found.pw_uid == 0:
        raise BadSettings(
            f"POLYDEV_USER is {user}, which is root",
            hint="The controller must not have root's rights: name an ordinary user",
        )
    return Account(user, found.pw_uid, grp.getgrgid(found.pw_gid).gr_name, found.pw_gid)


def _make(user: str) -> pwd.struct_passwd:
    command = ["useradd", "--system", "--user-group", "--no-create-home"]
    command += ["--home-dir=/nonexistent", "--shell=/usr/sbin/nologin", "--", user]
    try:
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=60)
    except FileNotFoundError:
        raise MissingTool(
            "useradd is not installed", hint="Install the Debian package passwd"
        ) from None
    except subprocess.CalledProcessError as error:
        raise Failed(
            f"The user {user} for the controller could not be made: {error.stderr.strip()[-200:]}",
            hint="Make it yourself, or name another in POLYDEV_USER",
        ) from None
    return pwd.getpwnam(user)


def prepare_folders(state_dir: Path, owner: Account) -> None:
    """Make the state folder and what the controller owns in it. Raises BadSettings."""
    state_dir.mkdir(parents=True, exist_ok=True, mode=0o755)
    for folder in (state_dir.resolve(), *state_dir.resolve().parents):
        if not folder.stat().st_mode & stat.S_IXOTH:
            raise BadSettings(
                f"POLYDEV_STATE_DIR is {state_dir}, but {folder} is closed to the user "
                f"{owner.user}",
                hint="The controller does not run as root: take a folder that all may enter",
            )
    for name, mode, uid, gid in (
        ("controller", 0o700, owner.uid, owner.gid),
        ("sockets", 0o750, 0, owner.gid),
        ("logs", 0o750, 0, owner.gid),
    ):
        folder = state_dir / name
        folder.mkdir(exist_ok=True, mode=mode)
        os.chown(folder, uid, gid)
        folder.chmod(mode)


def copy_program(folder: Path, *, keep: str = "", runs_in: Path | None = None) -> Path:
    """Put a copy of this program where the controller's user can read it; older ones go.

    The copy is laid out like a checkout: `src/polydev`, the recipes in `images`, the units in
    `deploy`, and `pyproject.toml`. `keep` names an older one that stays; `runs_in` is what `folder`
    is called where the copy will run, if that is elsewhere. Returns the folder for PYTHONPATH. Only
    the process that holds the instance may call it.
    """
    parts = _parts()
    target = folder / f"app-{_hash(parts)}"
    for old in folder.glob("app-*"):
        if old != target and old.name != keep:
            shutil.rmtree(old)
    if not target.exists():
        aside = Path(tempfile.mkdtemp(prefix="app-new-", dir=folder))
        for name, source in parts.items():
            if source.is_dir():
                shutil.copytree(source, aside / name, ignore=_ignored)
            else:
                shutil.copy(source, aside / name)
        for path in (aside, *aside.rglob("*")):
            os.chown(path, 0, 0)
            path.chmod(0o755 if path.is_dir() or os.access(path, os.X_OK) else 0o644)
        named = (runs_in or folder) / target.name
        compileall.compile_dir(aside / "src", quiet=2, stripdir=str(aside), prependdir=str(named))
        aside.rename(target)
    return target / "src"


def program_hash() -> str:
    """What names the copy of this program."""
    return _hash(_parts())


def _parts() -> dict[str, Path]:
    recipes = Recipe().recipes
    return {
        "src/polydev": Path(polydev.__file__).parent,
        "images": recipes,
        "deploy": recipes.parent / "deploy",
        "pyproject.toml": recipes.parent / "pyproject.toml",  # declares the entry points
    }


_ignored = shutil.ignore_patterns("__pycache__", "node_modules")


def _hash(parts: dict[str, Path]) -> str:
    digest = hashlib.sha256()
    for source in parts.values():
        for path in source_files(source) if source.is_dir() else (source,):
            digest.update(str(path.relative_to(source)).encode() + b"\0")
            digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()[:16]
