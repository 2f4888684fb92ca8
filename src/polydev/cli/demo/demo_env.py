"""Environment of the demo: a network namespace with fake providers, in place of the internet.

Polydev itself only gets the settings that a company with its own egress proxy and certificate
authority would use.
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
"""From a range reserved for documentation (RFC 5737)."""

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
"""Time limits for machines that run without KVM on a busy host."""
_WARM_QUIET_S = "120"
"""Create the template of warm browser machines after the demo, not during its logins."""


class DemoSettings(BaseSettings):
    """Name and state folder of the demo."""

    model_config = SettingsConfigDict(env_prefix="POLYDEV_DEMO_", frozen=True)

    name: str = Field(default="polydev-demo", pattern="^[a-z][a-z0-9-]{0,24}$")
    """Name of the demo's network namespaces."""
    state_dir: Path = Path("/var/lib/polydev-demo")
    """State folder of the demo."""

    @property
    def outside(self) -> str:
        """Network namespace of the fake internet."""
        return f"{self.name}-net"


def settings() -> DemoSettings:
    """Read the settings. Raises BadSettings."""
    try:
        return DemoSettings()
    except ValidationError as error:
        raise BadSettings(
            f"POLYDEV_DEMO_{str(error.errors()[0]['loc'][0]).upper()} is invalid: it must be at "
            "most 25 lower-case letters, digits and hyphens, and start with a letter",
            hint="For example POLYDEV_DEMO_NAME=polydev-demo",
        ) from None


@dataclass(frozen=True, slots=True)
class FakeProviders:
    """Running fake providers, which outlive the demo command."""

    process: asyncio.subprocess.Process

    def stop_auto_approval(self) -> None:
        """Make sign-ins manual from now on."""
        self.process.send_signal(signal.SIGUSR1)


@contextmanager
def demo_lock(demo: DemoSettings) -> Iterator[None]:
    """Hold the lock of the demo of this name. Raises AlreadyRunning."""
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
                break  # otherwise its holder removed it after we opened it
        except BlockingIOError:
            os.close(descriptor)
            raise AlreadyRunning(
                "A demo is already running on this machine",
                hint="Wait for it, or stop it with Ctrl-C. A second demo needs its own "
                "POLYDEV_DEMO_NAME, POLYDEV_DEMO_STATE_DIR and PORT",
            ) from None
        os.close(descriptor)
    try:
        yield
    finally:
        os.close(descriptor)


def enter() -> DemoSettings:
    """Set the environment variables that select the demo's Polydev."""
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
    """Create the namespace and the encryption key, and start the fake providers.

    `by_hand`: sign-ins are manual from the start.
    """
    await asyncio.to_thread(_prepare, demo)
    return await _start_fake_providers(demo, () if by_hand else ("--approve-automatically",))


async def remove(terminal: Terminal) -> bool:
    """Remove the namespace and end its processes. False if there was none."""
    from polydev.cli.supervisor.shutdown import kill_in_namespace

    demo = settings()
    if not namespaces.exists(demo.outside):
        return False
    async with terminal.step("Stopping the fake providers"):
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
    for arguments in (
        ("link", "set", "lo", "up"),
        ("address", "replace", f"{ADDRESS}/32", "dev", "lo"),
    ):
        done = subprocess.run(
            ["ip", "-n", demo.outside, *arguments], capture_output=True, text=True, check=False
        )
        if done.returncode != 0:
            raise Failed(f"Cannot create the demo's network: {done.stderr.strip()[-200:]}")


async def _start_fake_providers(demo: DemoSettings, how: Sequence[str]) -> FakeProviders:
    log = demo.state_dir / "logs" / "standin.log"
    with log.open("ab") as errors:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-P", "-m", "polydev.testing.fake_providers"),
            *("--netns", demo.outside, "--listen", ADDRESS, "--proxy-port", str(PROXY_PORT)),
            *("--folder", str(demo.state_dir / "standin"), *how),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=errors,
            start_new_session=True,
        )
    assert process.stdout is not None  # noqa: S101  (a pipe)
    try:
        line = await asyncio.wait_for(process.stdout.readline(), START_LIMIT_S)
        if json.loads(line)["ready"] is True:
            return FakeProviders(process)
    except (TimeoutError, ValueError, KeyError):
        pass
    raise Failed("The fake providers did not start", hint=f"See their log: {log}")
