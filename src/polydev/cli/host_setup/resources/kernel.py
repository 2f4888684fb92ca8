"""Kernel requirements of a host: modules, devices, cgroups, sysctls.

Setup only writes a file of modules to load. It sets no sysctl (decision 0046): the host agent
enables forwarding itself after its firewall rules are active, and reverts it.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from polydev.cli.host_setup.resource import State, Status
from polydev.cli.host_setup.target_root import Shape, TargetRoot
from polydev.cli.supervisor import preflight

MODULES = "/etc/modules-load.d/polydev.conf"
_KVM_MODULES = {"vmx": "kvm_intel", "svm": "kvm_amd"}
"""Module that provides /dev/kvm, by flag in /proc/cpuinfo."""

_CGROUP_CONTROLLERS = ("cpu", "memory", "pids")
_SYSCTL_FOLDERS = ("/etc/sysctl.d", "/run/sysctl.d", "/usr/local/lib/sysctl.d", "/usr/lib/sysctl.d")
_NEEDED_SYSCTLS = {
    "net.ipv4.ip_forward": "machines would have no network",
    "user.max_net_namespaces": "the namespace of the VM network could not be created",
}
"""Sysctls that must not be 0, with the reason."""


@dataclass(frozen=True, slots=True)
class Tools:
    """Programs of the distribution."""

    name: str = "programs"

    def check(self) -> Status:
        missing = sorted({package for tool, package in preflight.TOOLS.items() if not which(tool)})
        if missing:
            message = f"Debian packages are not installed: {', '.join(missing)}"
            hint = "Run `make setup` in the checkout, or install them with apt-get"
            return Status(self.name, State.MISSING, message, hint)
        return Status(self.name, State.OK, f"All {len(preflight.TOOLS)} are installed")

    def apply(self) -> None:
        """Do nothing: the administrator installs packages."""

    def revert(self, *, purge: bool) -> Sequence[str]:
        return []


@dataclass(frozen=True, slots=True)
class Modules:
    """Kernel modules, loaded now and at boot."""

    target: TargetRoot
    name: str = "modules"

    def check(self) -> Status:
        wanted = modules()
        if not self.target.is_file(MODULES, _listed(wanted), Shape(0o644)):
            hint = "Run `polydev host setup`"
            return Status(self.name, State.MISSING, f"{MODULES} does not list {wanted}", hint)
        if self.target.is_this_machine:
            preflight.tun()
        return Status(self.name, State.OK, f"{MODULES}: {', '.join(wanted)}")

    def apply(self) -> None:
        self.target.file(MODULES, _listed(modules()), Shape(0o644))
        if not self.target.is_this_machine or not which("modprobe"):
            return
        for module in modules():  # `check` then finds out whether the device exists
            subprocess.run(
                ["modprobe", "--quiet", "--", module], capture_output=True, check=False, timeout=60
            )

    def revert(self, *, purge: bool) -> Sequence[str]:
        """Remove the file. Loaded modules stay, because others may use them."""
        self.target.remove(MODULES)
        return []


@dataclass(frozen=True, slots=True)
class Kvm:
    """Usability of /dev/kvm. The driver's probe checks more, with a guest."""

    name: str = "kvm"

    def check(self) -> Status:
        if os.access("/dev/kvm", os.R_OK | os.W_OK):
            return Status(self.name, State.OK, "/dev/kvm is usable")
        message = "/dev/kvm is not usable, so machines run in slow software emulation"
        hint = "Enable virtualization in the firmware, or nested virtualization on the host"
        return Status(self.name, State.ADVICE, message, hint)

    def apply(self) -> None:
        """Do nothing: setup cannot enable virtualization."""

    def revert(self, *, purge: bool) -> Sequence[str]:
        return []


@dataclass(frozen=True, slots=True)
class Sysctls:
    """Sysctl files of this host that would break machines at the next boot."""

    target: TargetRoot
    name: str = "sysctls"

    def check(self) -> Status:
        for sysctl, (value, file) in _set_in_files(self.target).items():
            if sysctl in _NEEDED_SYSCTLS and value == "0":
                message = f"{file} sets {sysctl} to 0: {_NEEDED_SYSCTLS[sysctl]}"
                return Status(self.name, State.MISSING, message, "Remove that line")
        return Status(self.name, State.OK, "No sysctl file conflicts with machines")

    def apply(self) -> None:
        """Do nothing: the administrator set these values on purpose."""

    def revert(self, *, purge: bool) -> Sequence[str]:
        return []


@dataclass(frozen=True, slots=True)
class Cgroups:
    """cgroup v2 with the controllers that limit machines, delegated to polydev-machines."""

    target: TargetRoot
    name: str = "cgroups"

    def check(self) -> Status:
        try:
            offered = self.target.at("/sys/fs/cgroup/cgroup.controllers").read_text("ascii").split()
        except FileNotFoundError:
            return Status(
                self.name,
                State.ADVICE,
                "cgroup v2 is not mounted at /sys/fs/cgroup, but Firecracker's jailer needs it",
                "Boot the kernel with systemd.unified_cgroup_hierarchy=1. QEMU works without it",
            )
        missing = [name for name in _CGROUP_CONTROLLERS if name not in offered]
        if missing:
            message = f"cgroup v2 has no {', '.join(missing)}, but Firecracker's jailer needs it"
            hint = "Remove cgroup v1 from the kernel command line"
            return Status(self.name, State.ADVICE, message, hint)
        return Status(self.name, State.OK, f"cgroup v2 with {', '.join(_CGROUP_CONTROLLERS)}")

    def apply(self) -> None:
        """Do nothing: cgroups are mounted at boot."""

    def revert(self, *, purge: bool) -> Sequence[str]:
        return []


@dataclass(frozen=True, slots=True)
class Isolation:
    """Host features that weaken the isolation of guests."""

    target: TargetRoot
    name: str = "isolation"

    def check(self) -> Status:
        found = list(self._findings())
        if not found:
            return Status(self.name, State.OK, "No swap, no page merging, no SMT")
        hint = "Disable them if users of this host do not trust each other"
        return Status(self.name, State.ADVICE, "; ".join(found), hint)

    def apply(self) -> None:
        """Do nothing: the administrator decides, because these cost speed or memory."""

    def revert(self, *, purge: bool) -> Sequence[str]:
        return []

    def _findings(self) -> Iterator[str]:
        """Source: Firecracker's prod-host-setup."""
        if len(self._text("/proc/swaps").splitlines()) > 1:
            yield "swap is on, so guests' memory may reach the disk (`swapoff -a`, and /etc/fstab)"
        if self._text("/sys/kernel/mm/ksm/run") == "1":
            yield "KSM is on, so guests can detect the content of others (/sys/kernel/mm/ksm/run)"
        if self._text("/sys/devices/system/cpu/smt/active") == "1":
            yield "SMT is on, so two guests may share a core (`nosmt` on the kernel command line)"

    def _text(self, path: str) -> str:
        try:
            return self.target.at(path).read_text("ascii").strip()
        except OSError:
            return ""


def modules() -> list[str]:
    """Modules that machines need on this processor."""
    text = Path("/proc/cpuinfo").read_text("utf-8", "replace").split()
    flags = set(text) & _KVM_MODULES.keys()
    return [*sorted(_KVM_MODULES[flag] for flag in flags), "tun"]


def which(tool: str) -> str | None:
    """Find a program in PATH or in root's usual folders."""
    return shutil.which(tool) or shutil.which(tool, path="/usr/sbin:/usr/bin:/sbin:/bin")


def _listed(names: Sequence[str]) -> bytes:
    head = (
        "# Written by `polydev host setup`: kernel modules that machines need. modules-load.d(5)\n"
    )
    return (head + "".join(f"{name}\n" for name in names)).encode()


def _set_in_files(target: TargetRoot) -> dict[str, tuple[str, str]]:
    """Value and file of each sysctl, as systemd-sysctl(8) applies them.

    The last file by name wins; of two files with one name, the one in the first folder.
    """
    files: dict[str, str] = {}
    for folder in reversed(_SYSCTL_FOLDERS):
        for path in target.at(folder).glob("*.conf"):
            files[path.name] = f"{folder}/{path.name}"
    found = {}
    ordered = [files[name] for name in sorted(files)]
    for file in ordered:
        try:
            lines = target.at(file).read_text("utf-8", "replace").splitlines()
        except OSError:
            continue
        for line in lines:
            name, is_set, value = line.strip().partition("=")
            if is_set and not name.startswith(("#", ";")):
                found[name.strip().lstrip("-").replace("/", ".")] = (value.strip(), file)
    return found
