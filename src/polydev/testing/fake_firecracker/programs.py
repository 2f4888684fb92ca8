"""Installs the fake programs where a driver can use them."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

from polydev.hostagent.vmm.firecracker.binaries import Binaries

VERSION = "1.13.1"
_PACKAGE = "polydev.testing.fake_firecracker"


def install(folder: Path, *, version: str = VERSION) -> Binaries:
    """Write two programs into `folder`, which run on this Python. Blocking.

    `version` is the version that they report.
    """
    firecracker, jailer = folder / "firecracker", folder / "jailer"
    _write(firecracker, f"import {_PACKAGE}.firecracker as it", version)
    _write(jailer, f"import {_PACKAGE}.jailer as it", version)
    return Binaries(firecracker.resolve(), jailer.resolve())


def _write(path: Path, line: str, version: str) -> None:
    folders = [folder for folder in sys.path if folder and Path(folder).is_dir()]
    lines = (
        # Isolated: the caller's environment must not affect it.
        f"#!{shlex.quote(sys.executable)} -I",
        "import sys",
        f"sys.path[:] = {folders!r}",
        line,
        f"sys.exit(it.main(sys.argv[1:], {version!r}))",
    )
    temporary = path.with_name(f".{path.name}.new")
    temporary.write_text("".join(f"{line}\n" for line in lines))
    temporary.chmod(0o755)
    temporary.replace(path)
