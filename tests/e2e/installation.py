"""Run a separate Polydev with unique names, folders and port.

Tests run its commands as a user does, then search for leftovers.
"""

from __future__ import annotations

import json
import os
import secrets
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ports import ReservedPort

ROOT = Path(__file__).parents[2]
IMAGES = os.environ.get("POLYDEV_IMAGES_DIR", "/var/cache/polydev/golden-images")


@dataclass
class Installation:
    """Separate installation: state folder, namespaces and port."""

    name: str = field(default_factory=lambda: f"pdt-{secrets.token_hex(3)}")
    extra: dict[str, str] = field(default_factory=dict)
    _port: ReservedPort = field(default_factory=ReservedPort)

    @property
    def port(self) -> int:
        return self._port.number

    @property
    def state_dir(self) -> Path:
        return Path("/var/lib") / self.name

    @property
    def environment(self) -> dict[str, str]:
        """Return a command's environment; the last two variables name the demo."""
        return {
            "PATH": os.environ["PATH"],
            "LANG": "C.UTF-8",
            "PYTHONPATH": str(ROOT / "src"),
            "PORT": str(self.port),
            "POLYDEV_STATE_DIR": str(self.state_dir),
            "POLYDEV_IMAGES_DIR": IMAGES,
            "POLYDEV_NETNS": self.name,
            "POLYDEV_WARM_START": "false",
            "POLYDEV_DEMO_NAME": self.name,
            "POLYDEV_DEMO_STATE_DIR": str(self.state_dir),
            **self.extra,
        }

    def start(self, *argv: str, **options: Any) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-P", "-m", "polydev.cli", *argv],
            env=self.environment,
            text=True,
            stdin=options.pop("stdin", subprocess.DEVNULL),
            stdout=subprocess.PIPE,
            stderr=options.pop("stderr", subprocess.PIPE),
            **options,
        )

    def run(
        self, *argv: str, text_in: str | None = None, limit_s: float = 300
    ) -> subprocess.CompletedProcess[str]:
        stdin = subprocess.DEVNULL if text_in is None else subprocess.PIPE
        process = self.start(*argv, stdin=stdin)
        try:
            out, err = process.communicate(text_in, timeout=limit_s)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=60)
        return subprocess.CompletedProcess(argv, process.returncode, out, err)

    def ok(self, *argv: str, text_in: str | None = None, limit_s: float = 300) -> str:
        """Run a command that must succeed; return its output."""
        ended = self.run(*argv, text_in=text_in, limit_s=limit_s)
        assert ended.returncode == 0, f"{argv}: {ended.returncode}\n{ended.stdout}\n{ended.stderr}"
        return ended.stdout

    def json(self, *argv: str, limit_s: float = 300) -> Any:
        """Run a command that must succeed; return its JSON result."""
        return json.loads(self.ok(*argv, "--json", limit_s=limit_s).splitlines()[-1])

    def namespaces(self) -> list[str]:
        return sorted(p.name for p in Path("/run/netns").glob(f"{self.name}*"))

    def processes(self) -> dict[int, str]:
        """Find processes of this installation: pid -> arguments."""
        found = {}
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                arguments = (folder / "cmdline").read_bytes().replace(b"\0", b" ")
                environment = (folder / "environ").read_bytes()
            except OSError:
                continue
            if int(folder.name) != os.getpid() and self.name.encode() in arguments + environment:
                found[int(folder.name)] = arguments.decode(errors="replace")
        return found

    def process(self, module: str) -> int:
        """Return the pid of the process that runs a module."""
        [pid] = [pid for pid, argv in self.processes().items() if f"-m {module} " in argv]
        return pid

    def leftovers(self) -> dict[str, object]:
        """Return what is left of this installation."""
        found = {
            "processes": self.processes(),
            "namespaces": self.namespaces(),
            "state folder": [str(self.state_dir)] if self.state_dir.exists() else [],
            "mounts": [
                line
                for line in Path("/proc/self/mounts").read_text().splitlines()
                if self.name in line
            ],
        }
        return {what: things for what, things in found.items() if things}


@contextmanager
def demo_installation(**extra: str) -> Iterator[Installation]:
    """Provide an installation for a demo; check afterwards that nothing is left."""
    installation = Installation(extra=extra)
    try:
        yield installation
    finally:
        installation.run("down", "--demo")
