"""The world of the demo: a network namespace that plays the internet, with a stand-in provider.

`demo` builds it, `down --demo` removes it. Polydev itself is only given settings that any company
with an egress proxy and a certificate authority of its own would give it; nothing in it knows.
"""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import secrets
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pydantic import Field, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from polydev.cli.output.printer import Terminal
from polydev.cli.supervisor.pidfile import Instance
from polydev.hostagent.system import namespaces
from polydev.shared.errors import AlreadyRunning, BadSettings, Failed

ADDRESS = "198.51.100.1"
"""From a range that documentation may use: it is nobody's (RFC 5737)."""

PROXY_PORT = 3128
START_LIMIT_S = 60.0

GENEROUS = {
    "POLYDEV_MACHINE_LIMIT_S": "300",
    "POLYDEV_HEALTHY_LIMIT_S": "300",
    "POLYDEV_LOGIN_START_LIMIT_S": "180",
    "POLYDEV_CAPTURE_LIMIT_S": "120",
    "POLYDEV_WRITE_LIMIT_S": "180",
    "POLYDEV_DESTROY_LIMIT_S": "120",
    "POLYDEV_CHAT_START_LIMIT_S": "600",
    "POLYDEV_CHAT_STOP_GRACE_S": "60",
}
"""Limits for machines that are emulated in software, on a machine that does other work too."""
_WARM_QUIET_S = "120"
"""The demo's own logins boot their browser machines; the template is made once it has ended, for
whoever connects on the page."""


class DemoSettings(BaseSettings):
    """Name and state folder of the demo."""

    model_config = SettingsConfigDict(env_prefix="POLYDEV_DEMO_", frozen=True)

    name: str = Field(default="polydev-demo", pattern="^[a-z][a-z0-9-]{0,24}$")
    """Name of the demo's network namespaces."""
    state_dir: Path = Path("/var/lib/polydev-demo")
    """State folder of the demo."""

    @property
    def outside(self) -> str:
        """The namespace that plays the internet."""
        return f"{self.name}-net"


def settings() -> DemoSettings:
    """Those of the environment. Raises BadSettings."""
    try:
        return DemoSettings()
    except ValidationError as error:
        raise BadSettings(
            f"POLYDEV_DEMO_{str(error.errors()[0]['loc'][0]).upper()} is not usable: it must be at "
            "most 25 lower-case letters, digits and hyphens, and begin with a letter",
            hint="For example POLYDEV_DEMO_NAME=polydev-demo",
        ) from None


@dataclass(frozen=True, slots=True)
class FakeProviders:
    """The provider that runs. It outlives the demo's command."""

    process: asyncio.subprocess.Process

    def stop_auto_approval(self) -> None:
        """From now on nobody is signed in there but by their own hand."""
        self.process.send_signal(signal.SIGUSR1)


@contextmanager
def demo_lock(demo: DemoSettings) -> Iterator[None]:
    """Be the only one that carries a demo of this name through, or ends it.

    Raises AlreadyRunning.
    """
    path = Path(f"/run/{demo.name}.lock")
    with _locked(path):
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if path.exists() and os.path.samestat(os.fstat(descriptor), path.stat()):
                break  # else who held it removed it between our opening and our locking
        except BlockingIOError:
            os.close(descriptor)
            raise AlreadyRunning(
                "A demo is being carried through on this machine",
                hint="Wait until it has ended, or end it with Ctrl-C; another one beside it needs "
                "a POLYDEV_DEMO_NAME, a POLYDEV_DEMO_STATE_DIR and a PORT of its own",
            ) from None
        os.close(descriptor)
    try:
        yield
    finally:
        os.close(descriptor)


def enter() -> DemoSettings:
    """Point this process, and what it starts, at the demo's Polydev instead of the real one."""
    demo = settings()
    os.environ.update(
        POLYDEV_STATE_DIR=str(demo.state_dir),
        POLYDEV_NETNS=demo.name,
        POLYDEV_UPLINK="veth",
        POLYDEV_UPLINK_NETNS=demo.outside,
        POLYDEV_EGRESS="proxy",
        POLYDEV_EGRESS_PROXY=f"http://{ADDRESS}:{PROXY_PORT}",
        POLYDEV_EGRESS_CA_FILE=str(demo.state_dir / "standin" / "ca.pem"),
        POLYDEV_DNS="",
        ENCRYPTION_KEY=secrets.token_hex(32),
    )
    os.environ.setdefault("POLYDEV_IMAGES_DIR", "/var/cache/polydev/golden-images")
    os.environ.setdefault("POLYDEV_WARM_QUIET_S", _WARM_QUIET_S)
    for name in ("POLYDEV_URL", "POLYDEV_ADMIN_TOKEN", "DATABASE_URL"):
        os.environ.pop(name, None)
    for name, value in GENEROUS.items():
        os.environ.setdefault(name, value)
    return demo


async def build(demo: DemoSettings, *, by_hand: bool) -> FakeProviders:
    """Make the namespace, start the stand-in in it, keep the demo's own encryption key.

    `by_hand`: its sign-in form waits for a person from the beginning.
    """
    await asyncio.to_thread(_prepare, demo)
    return await _start_standin(demo, () if by_hand else ("--approve-automatically",))


async def remove(terminal: Terminal) -> bool:
    """End what runs in the outside namespace and remove it. False: it was not there."""
    from polydev.cli.supervisor.shutdown import kill_in_namespace

    demo = settings()
    if not namespaces.exists(demo.outside):
        return False
    async with terminal.step("Ending the stand-in provider"):
        await kill_in_namespace(demo.outside)
        await asyncio.to_thread(namespaces.remove, demo.outside)
    return True


def _prepare(demo: DemoSettings) -> None:
    Instance(demo.state_dir).claim()
    (demo.state_dir / "logs").mkdir(exist_ok=True)
    path = demo.state_dir / "encryption-key"
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(os.environ["ENCRYPTION_KEY"])
    namespaces.create(demo.outside)
    for words in (
        ("link", "set", "lo", "up"),
        ("address", "replace", f"{ADDRESS}/32", "dev", "lo"),
    ):
        made = subprocess.run(
            ["ip", "-n", demo.outside, *words], capture_output=True, text=True, check=False
        )
        if made.returncode != 0:
            raise Failed(f"The demo's network cannot be made: {made.stderr.strip()[-200:]}")


async def _start_standin(demo: DemoSettings, how: Sequence[str]) -> FakeProviders:
    log = demo.state_dir / "logs" / "standin.log"
    with log.open("ab") as words:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-P", "-m", "polydev.testing.fake_providers"),
            *("--netns", demo.outside, "--listen", ADDRESS, "--proxy-port", str(PROXY_PORT)),
            *("--folder", str(demo.state_dir / "standin"), *how),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=words,
            start_new_session=True,
        )
    assert process.stdout is not None  # noqa: S101  (asked for above)
    try:
        line = await asyncio.wait_for(process.stdout.readline(), START_LIMIT_S)
        if json.loads(line)["ready"] is True:
            return FakeProviders(process)
    except (TimeoutError, ValueError, KeyError):
        pass
    raise Failed("The stand-in provider has not started", hint=f"Its log is {log}")
