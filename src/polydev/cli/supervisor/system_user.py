"""System user of the controller, and its copy of the program.

The user may be unable to read a checkout (under /root, in a private temporary folder), and an edit
there must not affect a running program. So `up` runs a copy, owned by root and named by its hash.
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
    """System user and its group."""

    user: str
    uid: int
    group: str
    gid: int

    def setpriv(self) -> tuple[str, ...]:
        """Command prefix that drops all privileges and dies with the parent."""
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
    """Find the system user, or create it."""
    try:
        found = pwd.getpwnam(user)
    except KeyError:
        found = _make(user)
    if found.pw_uid == 0:
        raise BadSettings(
            f"POLYDEV_USER is {user}, which is root",
            hint="Set it to an ordinary user: the controller must not run as root",
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
            f"Cannot create the controller's user {user}: {error.stderr.strip()[-200:]}",
            hint="Create it yourself, or set POLYDEV_USER to another user",
        ) from None
    return pwd.getpwnam(user)


def prepare_folders(state_dir: Path, owner: Account) -> None:
    """Create the state folder and the controller's folders in it. Raises BadSettings."""
    state_dir.mkdir(parents=True, exist_ok=True, mode=0o755)
    for folder in (state_dir.resolve(), *state_dir.resolve().parents):
        if not folder.stat().st_mode & stat.S_IXOTH:
            raise BadSettings(
                f"POLYDEV_STATE_DIR is {state_dir}, but {owner.user} cannot enter {folder}",
                hint="The controller does not run as root. Use a folder that every user can enter",
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
    """Copy this program to where the controller's user can read it; deletes older copies.

    The copy has the layout of a checkout: `src/polydev`, the recipes in `images`, the units in
    `deploy`. `keep` names an older copy to keep; `runs_in` is the path of `folder` at runtime, if
    it differs. Returns the folder for PYTHONPATH. Callers must hold the lock of the instance.
    """
    parts = _parts()
    target = folder / f"app-{_hash(parts)}"
    for old in folder.glob("app-*"):
        if old != target and old.name != keep:
            shutil.rmtree(old)
    if not target.exists():
        temporary = Path(tempfile.mkdtemp(prefix="app-new-", dir=folder))
        for name, source in parts.items():
            if source.is_dir():
                shutil.copytree(source, temporary / name, ignore=_ignored)
            else:
                shutil.copy(source, temporary / name)
        for path in (temporary, *temporary.rglob("*")):
            os.chown(path, 0, 0)
            path.chmod(0o755 if path.is_dir() or os.access(path, os.X_OK) else 0o644)
        named = (runs_in or folder) / target.name
        compileall.compile_dir(
            temporary / "src", quiet=2, stripdir=str(temporary), prependdir=str(named)
        )
        temporary.rename(target)
    return target / "src"


def program_hash() -> str:
    """Hash that names the copy of this program."""
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
