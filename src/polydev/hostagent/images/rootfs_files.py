"""Turns a distribution's tree into a machine's: guest files, links and accounts.

It works on a folder that becomes the root image, and starts no programs.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

from polydev.hostagent.images.manifest import ImageKind
from polydev.hostagent.images.npm import commands
from polydev.hostagent.images.recipe import Recipe, source_files

_BUNDLES_FOLDER = Path("opt/polydev")
_CA_BUNDLE = Path("etc/ssl/certs/ca-certificates.crt")
# Boot scripts of a machine, by their names inside it.
_SCRIPTS = ("announce", "boot", "shutdown", "sshd-config", "vsock-proxy")
_BROWSER_UID = 1000
# Leftovers of package installation.
_LEFTOVERS = (
    "etc/apt/apt.conf.d/99mmdebstrap",
    "etc/dpkg/dpkg.cfg.d/99mmdebstrap",
    "etc/hostname",
    "etc/machine-id",
    "etc/resolv.conf",
    "var/lib/dbus/machine-id",
)
_EMPTIED = ("var/cache/apt", "var/cache/debconf", "var/lib/apt/lists", "var/log", "tmp")


def populate(root: Path, kind: ImageKind, recipe: Recipe, bundles: Mapping[str, Path]) -> None:
    """Make the tree at `root` a machine of a kind; `bundles` come from `npm.fetch`."""
    _clean(root)
    _lock_root_password(root)
    _boot_files(root, kind, recipe)
    _link_commands(root, kind, recipe, bundles)
    for inside, path in recipe.provider_files().items():
        _install_file(path, root / inside, 0o644 if path.suffix == ".toml" else 0o755)
    if kind is ImageKind.BROWSER:
        _browser_files(root, recipe)


def _clean(root: Path) -> None:
    for name in _LEFTOVERS:
        (root / name).unlink(missing_ok=True)
    for key in (root / "etc/ssh").glob("ssh_host_*"):
        key.unlink()
    for folder in _EMPTIED:
        for path in (root / folder).iterdir() if (root / folder).is_dir() else ():
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()


def _lock_root_password(root: Path) -> None:
    """Disable root's password with `*`; with `!`, sshd would refuse keys as well."""
    shadow = root / "etc/shadow"
    lines = shadow.read_text().splitlines()
    fields = [line.split(":") for line in lines]
    locked = [[row[0], "*", *row[2:]] if row[0] == "root" else row for row in fields]
    shadow.write_text("".join(":".join(row) + "\n" for row in locked))


def _boot_files(root: Path, kind: ImageKind, recipe: Recipe) -> None:
    source = recipe.machine_files
    library = root / "usr/lib/polydev"
    for name in _SCRIPTS:
        _install_file(source / f"{name}.sh", library / name, 0o755)
    _install_file(source / "phases.sh", library / "phases.sh", 0o644)
    _install_file(source / f"inittab.{kind}", root / "etc/inittab", 0o644)
    _install_file(source / "environment", root / "usr/share/polydev/environment", 0o644)
    _install_file(root / _CA_BUNDLE, root / "usr/share/polydev/ca-certificates.crt", 0o644)
    for name in ("init", "poweroff", "reboot", "halt"):
        link = root / "sbin" / name
        link.unlink(missing_ok=True)
        link.symlink_to("/bin/busybox")


def _link_commands(
    root: Path, kind: ImageKind, recipe: Recipe, bundles: Mapping[str, Path]
) -> None:
    # Hard links: the programs are large, and this tree exists only until the image is built.
    for name, folder in bundles.items():
        shutil.copytree(
            folder / "node_modules",
            root / _BUNDLES_FOLDER / name / "node_modules",
            symlinks=True,
            copy_function=_hard_link,
        )
    for command in commands(recipe, kind):
        packages = Path("/") / _BUNDLES_FOLDER / command.bundle / "node_modules"
        link = root / "usr/local/bin" / command.name
        link.symlink_to(packages / command.package / command.program)


def _browser_files(root: Path, recipe: Recipe) -> None:
    source = recipe.machine_files / "browser"
    for path in source_files(source):
        _install_file(path, root / "usr/lib/polydev" / path.stem, 0o755)
    for path in source_files(recipe.browser_service):
        inside = path.relative_to(recipe.browser_service)
        mode = 0o755 if path.stat().st_mode & 0o100 else 0o644  # CLIs run `open-url`
        _install_file(path, root / "opt/polydev/browser_service" / inside, mode)
    (root / "etc/chromium/policies/managed").mkdir(parents=True, exist_ok=True)
    _add_user(root, "browser", _BROWSER_UID)


def _add_user(root: Path, name: str, uid: int) -> None:
    """Add an unprivileged account without a login."""
    for file, line in (
        ("passwd", f"{name}:x:{uid}:{uid}::/home/{name}:/bin/bash"),
        ("group", f"{name}:x:{uid}:"),
        ("shadow", f"{name}:*:20000:0:99999:7:::"),
    ):
        with (root / "etc" / file).open("a") as accounts:
            accounts.write(line + "\n")
    home = root / "home" / name
    home.mkdir(mode=0o700)
    shutil.chown(home, uid, uid)


def _install_file(source: Path, target: Path, mode: int) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)
    target.chmod(mode)


def _hard_link(source: str, target: str) -> str:
    Path(target).hardlink_to(source)
    return target
