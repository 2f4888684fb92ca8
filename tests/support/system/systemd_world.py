"""A copy of this system under its own systemd, in its own namespaces.

Its root is an overlay over this system's root: it has all installed programs, and its changes go
away with it. It touches none of this system's users, units or networks.
"""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[3]
BOOT_LIMIT_S = 90
COMMAND_LIMIT_S = 240
PATH = "/usr/sbin:/usr/bin:/sbin:/bin"

_BOOT = """
set -eu
world=$1 root=$1/root checkout=$2
mount --make-rprivate /
mount -t tmpfs -o size=2g none "$world"
mkdir "$world/upper" "$world/work" "$root"
mount -t overlay overlay -o "lowerdir=/,upperdir=$world/upper,workdir=$world/work" "$root"
mount -t proc proc "$root/proc"
mount -t sysfs sysfs "$root/sys"
mount -t cgroup2 cgroup2 "$root/sys/fs/cgroup"
mount -t tmpfs -o mode=755 tmpfs "$root/run"
mount -t tmpfs -o mode=1777 tmpfs "$root/tmp"
if [ ! -e "$root$checkout" ]; then # on a filesystem of its own, or in /tmp
    mkdir -p "$world/checkout-upper" "$world/checkout-work" "$root$checkout"
    layers="lowerdir=$checkout,upperdir=$world/checkout-upper,workdir=$world/checkout-work"
    mount -t overlay -o "$layers" overlay "$root$checkout"
fi
mount -t tmpfs -o mode=755 tmpfs "$root/dev"
mkdir "$root/dev/pts" "$root/dev/shm" "$root/dev/net"
for device in null zero full random urandom tty kvm net/tun; do
    [ -e "/dev/$device" ] || continue
    touch "$root/dev/$device"
    mount --bind "/dev/$device" "$root/dev/$device"
done
mount -t devpts -o newinstance,ptmxmode=0666 devpts "$root/dev/pts"
ln -s pts/ptmx "$root/dev/ptmx"
ip link set lo up
mkdir "$root/.old"
cd "$root"
pivot_root . .old
cd /
umount -l /.old
rmdir /.old
mount --make-rshared /
exec env -i container=polydev-test PATH=/usr/sbin:/usr/bin:/sbin:/bin \\
    /lib/systemd/systemd --unit=basic.target </dev/null >/dev/null 2>&1
"""


@dataclass(frozen=True)
class SystemdWorld:
    """A running systemd, by its pid outside."""

    pid: int

    @property
    def root(self) -> Path:
        """Its root, as a path outside."""
        return Path(f"/proc/{self.pid}/root")

    def run(self, *command: str | Path, **env: str) -> subprocess.CompletedProcess[str]:
        """Run a command inside, as root."""
        inside = [f"--{name}" for name in ("mount", "pid", "uts", "ipc", "net", "cgroup", "root")]
        return subprocess.run(
            ["nsenter", f"--target={self.pid}", *inside, "--wdns=/", "--", *command],
            env={"PATH": PATH, "LANG": "C.UTF-8", **env},
            capture_output=True,
            text=True,
            check=False,
            timeout=COMMAND_LIMIT_S,
            stdin=subprocess.DEVNULL,
        )

    def shown(self, unit: str, *names: str) -> dict[str, str]:
        """Properties of a unit."""
        properties = [f"--property={name}" for name in names]
        output = self.run("systemctl", "show", unit, *properties).stdout
        return dict(line.split("=", 1) for line in output.splitlines() if "=" in line)


@contextmanager
def running_systemd(folder: Path) -> Iterator[SystemdWorld]:
    """Boot it; afterwards end it with everything in it."""
    kinds = [f"--{kind}" for kind in ("pid", "mount", "uts", "ipc", "net", "cgroup")]
    boot = ["bash", "-c", _BOOT, "boot", folder, CHECKOUT]
    command = ["unshare", *kinds, "--fork", "--kill-child", *boot]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE) as outer:
        try:
            world = SystemdWorld(_child_of(outer))
            _until_booted(world, outer)
            yield world
        finally:
            outer.kill()


def _child_of(outer: subprocess.Popen[bytes]) -> int:
    children = Path(f"/proc/{outer.pid}/task/{outer.pid}/children")
    return int(_until(lambda: children.read_text().split()[:1], outer)[0])


def _until_booted(world: SystemdWorld, outer: subprocess.Popen[bytes]) -> None:
    def bus() -> Sequence[str]:
        there = (world.root / "run/systemd/private").exists()
        is_systemd = Path(f"/proc/{world.pid}/comm").read_text().strip() == "systemd"
        return ["ready"] if there and is_systemd else []

    _until(bus, outer)
    world.run("systemctl", "is-system-running", "--wait")


def _until(check: Callable[[], Sequence[str]], outer: subprocess.Popen[bytes]) -> Sequence[str]:
    """Poll `check` until it returns something; nothing announces that systemd is up."""
    until = time.monotonic() + BOOT_LIMIT_S
    while time.monotonic() < until:
        if outer.poll() is not None:
            assert outer.stderr is not None
            raise AssertionError(os.fsdecode(outer.stderr.read()))
        with suppress(OSError):
            if found := check():
                return found
        time.sleep(0.05)
    raise AssertionError(f"systemd did not come up within {BOOT_LIMIT_S} s")
