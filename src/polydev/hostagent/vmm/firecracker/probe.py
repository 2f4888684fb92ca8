"""Detection of a working Firecracker: boot a guest as far as its first program.

It uses the same kernel, jailer and cgroup as a machine, without any drive: the initramfs prints a
line and, for want of a drive, shuts down. The result is cached until host boot, kernel, binaries or
/dev/kvm change.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import secrets
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path

from polydev.hostagent.vmm.boot_files import BootFiles
from polydev.hostagent.vmm.console import Marker
from polydev.hostagent.vmm.firecracker import configuration, ipc
from polydev.hostagent.vmm.firecracker.binaries import Binaries
from polydev.hostagent.vmm.firecracker.jail import jail
from polydev.hostagent.vmm.firecracker.jail.cgroup import JailerCgroups
from polydev.hostagent.vmm.firecracker.jail.jailer import JailConfig
from polydev.hostagent.vmm.firecracker.session import (
    FirecrackerSession,
    VmmLocation,
    remove_vmm_files,
)
from polydev.shared.atomic_files import write_whole
from polydev.shared.errors import MissingImage, PolydevError, VmmFailed
from polydev.shared.hints import Hint

_KVM = Path("/dev/kvm")
_LIMIT_S = 15.0
_MEMORY_MIB = 256
_UNPRIVILEGED_UID = 65534
_FIRST_LINE = "POLYDEV-BOOT "
"""The initramfs's first line (docs/machines.md, "Boot sequence")."""


class Prober:
    """Probes once and caches the result in a file of `cache_dir`."""

    def __init__(self, cache_dir: Path, cgroups: JailerCgroups) -> None:
        self._cache_dir = cache_dir
        self._cgroups = cgroups

    async def require_guest(self, binaries: Binaries, boot: BootFiles) -> None:
        """Raise VmmFailed if no guest runs here; MissingImage."""
        key = await asyncio.to_thread(_cache_key, binaries, boot)
        reason = await asyncio.to_thread(self._known, key)
        if reason is None:
            reason = await self._try(binaries, boot)
            await asyncio.to_thread(self._remember, key, reason)
        if reason:
            raise VmmFailed(reason)

    async def _try(self, binaries: Binaries, boot: BootFiles) -> str:
        """Return the reason why no guest runs; empty if one ran."""
        try:
            await self._boot(binaries, boot)
        except PolydevError as error:
            return error.message
        return ""

    async def _boot(self, binaries: Binaries, boot: BootFiles) -> None:
        self._cache_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        with ExitStack() as stack:
            temporary = tempfile.TemporaryDirectory(prefix="probe-", dir=self._cache_dir)
            folder = Path(stack.enter_context(temporary))
            location = VmmLocation(
                folder, _UNPRIVILEGED_UID, f"probe-{secrets.token_hex(8)}", self._cgroups
            )
            try:
                pipes = stack.enter_context(ipc.create_endpoints(folder, _UNPRIVILEGED_UID))
                files = configuration.boot_files(boot, folder)
                starting = partial(
                    jail.start, folder, _jail_config(location), files, binaries, pipes
                )
                session = await FirecrackerSession.start(location, starting, Marker(_FIRST_LINE))
                await _run(session)
            except OSError as error:
                raise VmmFailed(f"The probe failed: {error}") from error
            finally:
                await remove_vmm_files(location)

    def _known(self, key: str) -> str | None:
        try:
            known = json.loads(self._file.read_bytes())
            return str(known["why"]) if known["key"] == key else None
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def _remember(self, key: str, reason: str) -> None:
        content = json.dumps({"key": key, "why": reason}).encode()
        with suppress(OSError):
            write_whole(self._file, content, durable=False)

    @property
    def _file(self) -> Path:
        return self._cache_dir / "probe-firecracker.json"


async def _run(session: FirecrackerSession) -> None:
    """Start the guest, wait for its first line, and kill it. Raises: VmmFailed."""
    seen = asyncio.create_task(session.marker.seen.wait())
    ended = asyncio.create_task(session.ended())
    try:
        await configuration.set_outputs(session.api)
        await configuration.boot_source(session.api, memory_mib=_MEMORY_MIB, vcpus=1)
        await session.api.start()
        await asyncio.wait({seen, ended}, timeout=_LIMIT_S, return_when=asyncio.FIRST_COMPLETED)
    finally:
        seen.cancel()
        ended.cancel()
        await session.kill()
    if not session.marker.seen.is_set():
        output = " | ".join(filter(None, (session.last_errors, session.last_console_output)))
        raise VmmFailed(f"No guest ran within {_LIMIT_S:.0f} s: {output or 'no output'}")


def _jail_config(location: VmmLocation) -> JailConfig:
    return JailConfig(
        id=location.name,
        base=location.folder / jail.FOLDER,
        uid=location.uid,
        parent_cgroup=location.cgroups.parent,
        netns=None,
        memory_mib=_MEMORY_MIB,
        vcpus=1,
        largest_file_bytes=_MEMORY_MIB << 20,
    )


def _cache_key(binaries: Binaries, boot: BootFiles) -> str:
    digest = hashlib.sha256(Path("/proc/sys/kernel/random/boot_id").read_bytes())
    files: Sequence[Path] = (boot.kernel, boot.initramfs, binaries.firecracker, binaries.jailer)
    for path in (*files, _KVM):
        try:
            state = path.stat()
        except FileNotFoundError:
            if path == _KVM:
                raise VmmFailed(f"There is no {_KVM}") from None
            raise MissingImage(
                f"{path} is missing", hint=Hint.BUILD_IMAGE.text(kind="kernel")
            ) from None
        parts = (str(path), state.st_mode, state.st_uid, state.st_gid)
        digest.update(repr((*parts, state.st_size, state.st_mtime_ns)).encode())
    return digest.hexdigest()
