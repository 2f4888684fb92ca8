"""What the kernel of a host must offer: modules, devices, cgroups; and what it should not do.

Only what machines need is made: a file of modules to load. No sysctl is set (decision 0046): the
host agent switches forwarding on itself, after its rules stand, and takes it back.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from polydev.cli.host_setup.resources import State, Status
from polydev.cli.host_setup.target_root import Shape, TargetRoot
from polydev.cli.supervisor import preflight

MODULES = "/etc/modules-load.d/polydev.conf"
_KVM_MODULES = {"vmx": "kvm_intel", "svm": "kvm_amd"}
"""Flag in /proc/cpuinfo -> the module that makes /dev/kvm."""

_CONTROLLER_TEXT = ("cpu", "memory", "pids")
_SYSCTL_FOLDERS = ("/etc/sysctl.d", "/run/sysctl.d", "/usr/local/lib/sysctl.d", "/usr/lib/sysctl.d")
_NEEDED_SYSCTLS = {
    "net.ipv4.ip_forward": "machines would have no network",
    "user.max_net_namespaces": "the VM network's namespace could not be made",
}
"""Sysctls that must not be 0, and why."""


@dataclass(frozen=True, slots=True)
class Tools:
    """Programs of the distribution."""

    name: str = "programs"

    def check(self) -> Status:
        missing = sorted({package for tool, package in preflight.TOOLS.items() if not which(tool)})
        if missing:
            words = f"Not installed: the Debian packages {', '.join(missing)}"
            return Status(
                self.name, State.MISSING, words, "`make setup` in the checkout, or apt-get"
            )
        return Status(self.name, State.OK, f"All {len(preflight.TOOLS)} are installed")

    def apply(self) -> None:
        """Packages are the administrator's."""

    def revert(self, *, purge: bool) -> Sequence[str]:
        return []


@dataclass(frozen=True, slots=True)
class Modules:
    """Modules that are loaded when the host starts, and now."""

    place: TargetRoot
    name: str = "modules"

    def check(self) -> Status:
        wanted = modules()
        if not self.place.is_file(MODULES, _listed(wanted), Shape(0o644)):
            hint = "`polydev host setup` writes it"
            return Status(self.name, State.MISSING, f"{MODULES} does not name {wanted}", hint)
        if self.place.is_this_machine:
            preflight.tun()
        return Status(self.name, State.OK, f"{MODULES}: {', '.join(wanted)}")

    def apply(self) -> None:
        self.place.file(MODULES, _listed(modules()), Shape(0o644))
        if not self.place.is_this_machine or not which("modprobe"):
            return
        for module in modules():  # `look` says whether the device is there then
            subprocess.run(
                ["modprobe", "--quiet", "--", module], capture_output=True, check=False, timeout=60
            )

    def revert(self, *, purge: bool) -> Sequence[str]:
        """Modules stay loaded: others may use them by now."""
        self.place.remove(MODULES)
        return []


@dataclass(frozen=True, slots=True)
class Kvm:
    """Whether a processor can run guests. What a guest finds, the driver's probe tries."""

    name: str = "kvm"

    def check(self) -> Status:
        if os.access("/dev/kvm", os.R_OK | os.W_OK):
            return Status(self.name, State.OK, "/dev/kvm can be opened")
        words = "There is no usable /dev/kvm: machines are emulated in software, and slow"
        hint = "Switch virtualization on in the firmware, or nested virtualization in the host"
        return Status(self.name, State.ADVICE, words, hint)

    def apply(self) -> None:
        """Nothing of it is the set-up's."""

    def revert(self, *, purge: bool) -> Sequence[str]:
        return []


@dataclass(frozen=True, slots=True)
class Sysctls:
    """That no file of this host takes away what machines need, now or at its next start."""

    place: TargetRoot
    name: str = "sysctls"

    def check(self) -> Status:
        for sysctl, (value, file) in _set_in_files(self.place).items():
            if sysctl in _NEEDED_SYSCTLS and value == "0":
                words = f"{file} sets {sysctl} to 0: {_NEEDED_SYSCTLS[sysctl]}"
                return Status(self.name, State.MISSING, words, "Take that line out")
        return Status(self.name, State.OK, "No file takes away what machines need")

    def apply(self) -> None:
        """What somebody wrote down on purpose is not overruled."""

    def revert(self, *, purge: bool) -> Sequence[str]:
        return []


@dataclass(frozen=True, slots=True)
class Cgroups:
    """cgroup v2, with what limits machines. The unit polydev-machines has it delegated."""

    place: TargetRoot
    name: str = "cgroups"

    def check(self) -> Status:
        try:
            offered = self.place.at("/sys/fs/cgroup/cgroup.controllers").read_text("ascii").split()
        except FileNotFoundError:
            return Status(
                self.name,
                State.ADVICE,
                "cgroup v2 is not mounted at /sys/fs/cgroup: Firecracker's jailer needs it",
                "Start the kernel with systemd.unified_cgroup_hierarchy=1; QEMU runs without it",
            )
        missing = [name for name in _CONTROLLER_TEXT if name not in offered]
        if missing:
            words = f"cgroup v2 has no {', '.join(missing)}: Firecracker's jailer needs it"
            return Status(self.name, State.ADVICE, words, "Take cgroup v1 out of the kernel's line")
        return Status(self.name, State.OK, f"cgroup v2 with {', '.join(_CONTROLLER_TEXT)}")

    def apply(self) -> None:
        """How a host mounts cgroups is decided when it starts."""

    def revert(self, *, purge: bool) -> Sequence[str]:
        return []


@dataclass(frozen=True, slots=True)
class Isolation:
    """What lets one guest learn of another, or writes its memory where it is not expected."""

    place: TargetRoot
    name: str = "isolation"

    def check(self) -> Status:
        found = list(self._findings())
        if not found:
            return Status(self.name, State.OK, "No swap, no page merging, no shared cores")
        hint = "Machines of people who do not trust each other should not share them"
        return Status(self.name, State.ADVICE, "; ".join(found), hint)

    def apply(self) -> None:
        """These cost speed or memory: whoever runs the host decides."""

    def revert(self, *, purge: bool) -> Sequence[str]:
        return []

    def _findings(self) -> Iterator[str]:
        """Source: Firecracker's prod-host-setup."""
        if len(self._text("/proc/swaps").splitlines()) > 1:
            yield "swap is on: guests' memory may reach the disk (`swapoff -a`, and /etc/fstab)"
        if self._text("/sys/kernel/mm/ksm/run") == "1":
            yield "KSM merges pages: guests can tell what others hold (/sys/kernel/mm/ksm/run)"
        if self._text("/sys/devices/system/cpu/smt/active") == "1":
            yield "SMT is on: two guests may share a core (`nosmt` on the kernel's line)"

    def _text(self, path: str) -> str:
        try:
            return self.place.at(path).read_text("ascii").strip()
        except OSError:
            return ""


def modules() -> list[str]:
    """The modules that this processor's machines need."""
    words = Path("/proc/cpuinfo").read_text("utf-8", "replace").split()
    flags = set(words) & _KVM_MODULES.keys()
    return [*sorted(_KVM_MODULES[flag] for flag in flags), "tun"]


def which(tool: str) -> str | None:
    """Where a program is that root uses, whatever PATH says."""
    return shutil.which(tool) or shutil.which(tool, path="/usr/sbin:/usr/bin:/sbin:/bin")


def _listed(names: Sequence[str]) -> bytes:
    head = "# Made by `polydev host setup`: what machines need of the kernel. modules-load.d(5)\n"
    return (head + "".join(f"{name}\n" for name in names)).encode()


def _set_in_files(place: TargetRoot) -> dict[str, tuple[str, str]]:
    """Sysctl -> value and file, as systemd-sysctl(8) would set them: the last file by name counts,
    and of two with one name the one in the first folder."""
    files: dict[str, str] = {}
    for folder in reversed(_SYSCTL_FOLDERS):
        for path in place.at(folder).glob("*.conf"):
            files[path.name] = f"{folder}/{path.name}"
    found = {}
    ordered = [files[name] for name in sorted(files)]
    for file in ordered:
        try:
            lines = place.at(file).read_text("utf-8", "replace").splitlines()
        except OSError:
            continue
        for line in lines:
            name, is_set, value = line.strip().partition("=")
            if is_set and not name.startswith(("#", ";")):
                found[name.strip().lstrip("-").replace("/", ".")] = (value.strip(), file)
    return found
