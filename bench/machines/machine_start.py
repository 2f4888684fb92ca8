"""Compare a machine's start with QEMU started by hand.

Both sides end at the first successful SSH handshake with the guest. The reference is QEMU with the
same kernel, image and devices, but without agent, sandbox or records; its disk and TAP are ready
before the clock starts.
"""

from __future__ import annotations

import asyncio
import secrets
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import asyncssh

from bench.common.agent import BenchAgent
from bench.common.measure import Comparison, compare
from polydev.hostagent.images import ImageStore
from polydev.hostagent.network import Attachment, Network, dial
from polydev.hostagent.provisioning.config_drive import MachineConfig, write_config_drive
from polydev.hostagent.provisioning.disks import make_disk
from polydev.hostagent.provisioning.ssh_keys import MachineKeys, make_keys
from polydev.hostagent.settings import HostSettings
from polydev.hostagent.vmm.qemu.command import MACHINE, Acceleration, kernel_line
from polydev.hostagent.vmm.qemu.tsc import tsc_khz
from polydev.shared.domain import MachineKind, new_vm_id
from polydev.shared.host_protocol import CreateMachine, DestroyMachine

MEMORY_MIB = 512
DISK_MIB = 4096
_LIMIT_S = 120.0
_NONCE = "bench"


async def machine_start(agent: BenchAgent, rounds: int) -> Comparison:
    """Compare both sides in turn."""

    async def ours() -> float:
        vm_id = new_vm_id()
        wanted = CreateMachine(
            vm_id=vm_id,
            machine_kind=MachineKind.CLI,
            memory_mib=MEMORY_MIB,
            vcpus=1,
            disk_mib=DISK_MIB,
            ready_timeout_s=_LIMIT_S,
        )
        started = time.monotonic()
        await agent.host.run(f"create-{vm_id}", wanted, _LIMIT_S)
        seconds = time.monotonic() - started
        await agent.host.run(f"destroy-{vm_id}", DestroyMachine(vm_id=vm_id), _LIMIT_S)
        return seconds

    async with bare_qemu(agent.images_dir) as bare:
        return await compare(
            "machine: create until the channel answers", ours, bare, rounds=rounds, goal=1.05
        )


@dataclass(frozen=True, slots=True)
class BareQemu:
    """Files, keys and network of a plain QEMU, prepared before the clock starts."""

    folder: Path
    netns: str
    attachment: Attachment
    keys: MachineKeys
    store: ImageStore

    def arguments(self) -> list[str]:
        kernel, image = self.store.require("kernel"), self.store.require("cli")
        drives = (
            ("root", image.root_image, ",readonly=on"),
            ("disk", self.folder / "disk.img", ""),
            ("config", self.folder / "config.tar", ",readonly=on"),
        )
        arguments = [
            *("nsenter", f"--net=/run/netns/{self.netns}", "qemu-system-x86_64"),
            *("-M", MACHINE),
            *("-accel", "tcg,thread=multi,tb-size=256", "-cpu", "max"),
            *("-m", str(MEMORY_MIB), "-smp", "1", "-nodefaults", "-no-user-config"),
            *("-display", "none", "-no-reboot", "-serial", "stdio"),
            *("-kernel", str(kernel.kernel), "-initrd", str(kernel.initramfs)),
            *("-append", kernel_line(Acceleration("tcg", tsc_khz=tsc_khz()))),
            *("-device", "virtio-rng-device"),
        ]  # fmt: skip
        for name, path, more in drives:
            arguments += ["-drive", f"id={name},if=none,format=raw,file={path}{more}"]
            arguments += ["-device", f"virtio-blk-device,drive={name}"]
        forward = f"hostfwd=tcp:127.0.0.1:{self.attachment.channel_port}-10.0.2.15:22"
        return [
            *arguments,
            *(
                "-netdev",
                f"tap,id=lan,ifname={self.attachment.tap},script=no,downscript=no,vnet_hdr=on",
            ),
            *("-device", f"virtio-net-device,netdev=lan,mac={self.attachment.mac}"),
            *("-netdev", f"user,id=channel,restrict=on,ipv6=off,{forward}"),
            *("-device", f"virtio-net-device,netdev=channel,mac={self.attachment.channel_mac}"),
            *("-device", "virtio-balloon-device,free-page-reporting=on,deflate-on-oom=on"),
        ]

    async def __call__(self) -> float:
        """Start QEMU with an empty disk, wait until it is ready, kill it."""
        (self.folder / "disk.img").unlink(missing_ok=True)
        await make_disk(self.folder / "disk.img", DISK_MIB, uid=0, cache_dir=self.folder)
        arguments = self.arguments()
        started = time.monotonic()
        process = await asyncio.create_subprocess_exec(
            *arguments,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        try:
            async with asyncio.timeout(_LIMIT_S):
                await _wait_for_marker(process)
                await self._handshake()
            return time.monotonic() - started
        finally:
            process.kill()
            await process.wait()

    async def _handshake(self) -> None:
        connected = await dial(self.netns, "127.0.0.1", self.attachment.channel_port)
        async with asyncssh.connect(
            sock=connected,
            username="root",
            known_hosts=None,
            config=None,
            client_keys=[asyncssh.import_private_key(self.keys.client_private)],
        ):
            return


@asynccontextmanager
async def bare_qemu(images_dir: Path) -> AsyncIterator[BareQemu]:
    """Prepare a namespace with one TAP, keys and config drive; remove them afterwards."""
    name = f"pdb-{secrets.token_hex(3)}"
    with tempfile.TemporaryDirectory(prefix="pdb-", dir="/var/tmp") as text:
        folder = Path(text)
        settings = HostSettings(
            state_dir=folder, netns=name, uplink="none", egress="none", dns=(), egress_proxy=None
        )
        network = Network.from_settings(settings)
        await network.ensure()
        try:
            vm_id = new_vm_id()
            attachment = await network.attach(vm_id, 0)
            keys = await make_keys(folder / "keys")
            config = MachineConfig(
                vm_id=vm_id,
                kind=MachineKind.CLI,
                hostname="bench",
                address=f"{attachment.address}/{attachment.prefix}",
                mac=attachment.mac,
                gateway=str(settings.gateway),
                dns=(),
                channel_mac=attachment.channel_mac,
                ready_nonce=_NONCE,
                clock_s=int(time.time()),
                host_key=keys.host_private,
                authorized_key=keys.client_public,
            )
            await write_config_drive(folder / "config.tar", config, uid=0)
            yield BareQemu(folder, name, attachment, keys, ImageStore(images_dir))
        finally:
            await network.remove()
            await network.close()


async def _wait_for_marker(process: asyncio.subprocess.Process) -> None:
    assert process.stdout is not None
    seen = b""
    while f"POLYDEV-READY {_NONCE}".encode() not in seen:
        chunk = await process.stdout.read(4096)
        if not chunk:
            raise SystemExit(f"the plain QEMU ended: {seen[-500:].decode('utf-8', 'replace')}")
        seen += chunk
