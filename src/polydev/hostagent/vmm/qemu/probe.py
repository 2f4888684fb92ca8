"""Detection of QEMU's accelerator: boot a guest as far as its first program.

`/dev/kvm` may exist, and even create a vCPU, on hosts where no guest ever runs. So the probe boots
the real kernel and initramfs without any drive, as unprivileged as a machine: the initramfs prints
a line and, for want of a drive, shuts down. The result is cached until host boot, kernel or QEMU
change.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import stat
import tempfile
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from polydev.hostagent.system.sandbox import confined, tool
from polydev.hostagent.vmm.boot_files import BootFiles
from polydev.hostagent.vmm.console import Marker
from polydev.hostagent.vmm.qemu import ipc
from polydev.hostagent.vmm.qemu.command import (
    PACKAGE,
    PROGRAM,
    Acceleration,
    BootDescriptors,
    guest_arguments,
)
from polydev.hostagent.vmm.qemu.session import QemuSession
from polydev.hostagent.vmm.qemu.tsc import tsc_khz
from polydev.shared.atomic_files import write_whole
from polydev.shared.errors import BadSettings, MissingImage, VmmFailed
from polydev.shared.hints import Hint

_KVM = Path("/dev/kvm")
_KVM_LIMIT_S = 15
_TCG_LIMIT_S = 120
_MEMORY_MIB = 256
_UNPRIVILEGED_UID = 65534
_FIRST_LINE = "POLYDEV-BOOT "
"""The initramfs's first line (docs/machines.md, "Boot sequence")."""


@dataclass(frozen=True, slots=True)
class _ProbeResult:
    accelerator: str
    reason: str


class Prober:
    """Probes once and caches the result in a file of `cache_dir`."""

    def __init__(self, cache_dir: Path, wanted: str) -> None:
        if wanted not in {"auto", "kvm", "tcg"}:
            raise BadSettings(f"Unknown accelerator {wanted!r}; use auto, kvm or tcg")
        self._cache_dir = cache_dir
        self._wanted = wanted
        self._known: dict[BootFiles, _ProbeResult] = {}
        self._lock = asyncio.Lock()
        self.reason = ""
        """Reason for the last result."""

    async def acceleration(self, boot_files: BootFiles) -> Acceleration:
        """Return the accelerator. Raises: VmmFailed if there is none; MissingTool, MissingImage."""
        async with self._lock:
            result = self._known.get(boot_files) or await self._result(boot_files)
            self._known[boot_files] = result
            self.reason = result.reason
            return await _acceleration(result.accelerator)

    async def _result(self, boot_files: BootFiles) -> _ProbeResult:
        if self._wanted != "auto":
            return _ProbeResult(self._wanted, "set in the settings")
        key = await asyncio.to_thread(_cache_key, boot_files)
        cached = await asyncio.to_thread(self._cached, key)
        if cached is not None:
            return cached
        result = await self._try(boot_files)
        await asyncio.to_thread(self._remember, key, result)
        return result

    async def _try(self, boot_files: BootFiles) -> _ProbeResult:
        """Return `kvm` if a guest runs under it, else `tcg`."""
        try:
            await self._boot(boot_files, "kvm", _KVM_LIMIT_S)
        except VmmFailed as error:
            reason = error.message
        else:
            return _ProbeResult("kvm", "a test guest ran under KVM")
        await self._boot(boot_files, "tcg", _TCG_LIMIT_S)
        return _ProbeResult("tcg", f"software emulation, because {reason}")

    async def _boot(self, boot_files: BootFiles, accelerator: str, limit_s: float) -> None:
        """Boot a guest until its first line. Raises: VmmFailed."""
        acceleration = await _acceleration(accelerator)
        self._cache_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        with ExitStack() as stack:
            temporary = tempfile.TemporaryDirectory(prefix="probe-", dir=self._cache_dir)
            folder = Path(stack.enter_context(temporary))
            kernel = _open(stack, boot_files.kernel)
            initramfs = _open(stack, boot_files.initramfs)
            endpoints = stack.enter_context(ipc.create_endpoints(folder))
            boot = BootDescriptors(
                kernel, initramfs, endpoints.qmp.fileno(), endpoints.console.fileno()
            )
            arguments = guest_arguments("polydev-probe", _MEMORY_MIB, 1, boot, acceleration)
            argv = confined(
                [tool(PROGRAM, PACKAGE), *arguments],
                uid=_UNPRIVILEGED_UID,
                groups=acceleration.groups,
            )
            marker = Marker(_FIRST_LINE)
            session = await QemuSession.start(folder, argv, [kernel, initramfs], endpoints, marker)
            try:
                await session.qmp.execute("cont")
                await _wait_booted(session, marker, accelerator, limit_s)
            finally:
                await session.kill()

    def _cached(self, key: str) -> _ProbeResult | None:
        try:
            known = json.loads((self._cache_dir / "probe.json").read_bytes())
            return _ProbeResult(**known["result"]) if known["key"] == key else None
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def _remember(self, key: str, result: _ProbeResult) -> None:
        content = json.dumps({"key": key, "result": asdict(result)}).encode()
        with suppress(OSError):
            write_whole(self._cache_dir / "probe.json", content, durable=False)


async def _wait_booted(
    session: QemuSession, marker: Marker, accelerator: str, limit_s: float
) -> None:
    seen = asyncio.create_task(marker.seen.wait())
    ended = asyncio.create_task(session.ended())
    try:
        await asyncio.wait({seen, ended}, timeout=limit_s, return_when=asyncio.FIRST_COMPLETED)
    finally:
        seen.cancel()
        ended.cancel()
    if marker.seen.is_set():
        return
    output = " | ".join(filter(None, (session.last_errors, session.last_console_output)))
    raise VmmFailed(
        f"no guest ran under {accelerator} within {limit_s:.0f} s: {output or 'no output'}"
    )


async def _acceleration(name: str) -> Acceleration:
    """Look up an accelerator's needs. Raises: VmmFailed if the VMM's user lacks access."""
    if name == "kvm":
        return Acceleration("kvm", groups=_kvm_groups())
    return Acceleration("tcg", tsc_khz=await asyncio.to_thread(tsc_khz))


def _kvm_groups() -> tuple[int, ...]:
    try:
        state = _KVM.stat()
    except OSError:
        raise VmmFailed(f"there is no {_KVM}") from None
    everybody, group = stat.S_IROTH | stat.S_IWOTH, stat.S_IRGRP | stat.S_IWGRP
    if state.st_mode & everybody == everybody:
        return ()
    if state.st_mode & group == group and state.st_gid != 0:
        return (state.st_gid,)
    raise VmmFailed(f"only root may use {_KVM}, and machines do not run as root")


def _open(stack: ExitStack, path: Path) -> int:
    try:
        descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except FileNotFoundError:
        raise MissingImage(
            f"{path} is missing", hint=Hint.BUILD_IMAGE.text(kind="kernel")
        ) from None
    stack.callback(os.close, descriptor)
    return descriptor


def _cache_key(boot_files: BootFiles) -> str:
    """Hash host boot, guest kernel, QEMU, and access to KVM."""
    digest = hashlib.sha256(Path("/proc/sys/kernel/random/boot_id").read_bytes())
    for path in (boot_files.kernel, boot_files.initramfs):
        try:
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
        except FileNotFoundError:
            raise MissingImage(
                f"{path} is missing", hint=Hint.BUILD_IMAGE.text(kind="kernel")
            ) from None
    for path in (Path(tool(PROGRAM, PACKAGE)), _KVM):
        with suppress(OSError):
            state = path.stat()
            parts = (state.st_mode, state.st_uid, state.st_gid, state.st_size, state.st_mtime_ns)
            digest.update(repr(parts).encode())
    return digest.hexdigest()
