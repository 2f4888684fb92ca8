"""The fake machine: the allowed order of requests, and the real VMM's side effects.

It opens what the real one opens, as the same user in the same jail: kernel, drives, TAP, the vsock
socket, logs. `guest.py` has its guest.
"""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import struct
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from polydev.testing.fake_firecracker import memory
from polydev.testing.fake_firecracker.guest import FakeGuest

_TUNSETIFF = 0x400454CA
_IFF_TAP, _IFF_NO_PI, _IFF_VNET_HDR = 0x0002, 0x1000, 0x4000
_FAILED_LOAD = 1
_DYING_S = 0.02
_BEFORE = "The requested operation is not supported before starting the microVM."
_AFTER = "The requested operation is not supported after starting the microVM."

Answer = dict[str, Any] | None
Body = dict[str, Any]
Handler = Callable[[Body], Awaitable[Answer]]


class Fault(Exception):
    """An impossible request; its text is the API's error message."""


class FakeMachine:
    """A microVM: `Not started`, then `Running` or `Paused`. Needs a running event loop."""

    def __init__(self, name: str, version: str) -> None:
        self._name = name
        self._version = version
        self._guest: FakeGuest | None = None
        self._sizes: Body = {"vcpu_count": 1, "mem_size_mib": 128, "smt": False}
        self._parts: dict[str, Any] = {"drives": {}, "interfaces": {}}
        """The configuration, as requested."""
        self._open_files: list[int] = []
        self._end: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._tasks: list[asyncio.Task[None]] = []
        self._anytime: dict[str, Handler] = {
            "describeInstance": self._describe,
            "getFirecrackerVersion": self._get_version,
            "getMachineConfiguration": self._get_sizes,
            "getExportVmConfig": self._get_parts,
        }
        self._before: dict[str, Handler] = {
            "putLogger": self._log,
            "putMetrics": self._measure,
            "putMachineConfiguration": self._size,
            "putGuestBootSource": self._boot_source,
            "putGuestDriveByID": self._drive,
            "putGuestNetworkInterfaceByID": self._interface,
            "putGuestVsock": self._vsock,
            "putEntropyDevice": self._entropy,
            "putBalloon": self._balloon,
            "loadSnapshot": self._load,
        }
        self._after: dict[str, Handler] = {
            "patchVm": self._change,
            "createSnapshot": self._save,
            "patchBalloon": self._resize_balloon,
            "describeBalloonStats": self._balloon_statistics,
        }

    async def ended(self) -> int:
        """Wait for the guest's end, or a fatal error; return the exit status."""
        return await self._end

    async def perform(self, operation: str, body: Body) -> Answer:
        """Perform an operation, by its operationId. Raises: Fault."""
        if operation == "createSyncAction":
            return await self._act(str(body["action_type"]))
        started = self._guest is not None
        if started and operation in self._before:
            raise Fault(_AFTER)
        if not started and operation in self._after:
            raise Fault(_BEFORE)
        known = self._anytime | self._before | self._after
        if operation not in known:
            raise Fault(f"The fake does not implement {operation}")
        return await known[operation](body)

    # Queries ----------------------------------------------------------------------------------

    async def _describe(self, _: Body) -> Answer:
        state = "Not started" if self._guest is None else self._guest.state
        fields = {"app_name": "Firecracker", "id": self._name, "vmm_version": self._version}
        return {**fields, "state": state}

    async def _get_version(self, _: Body) -> Answer:
        return {"firecracker_version": self._version}

    async def _get_sizes(self, _: Body) -> Answer:
        return dict(self._sizes)

    async def _get_parts(self, _: Body) -> Answer:
        lists = {"drives": "drives", "interfaces": "network-interfaces"}
        fields = {k: v for k, v in self._parts.items() if k not in lists}
        fields |= {name: list(self._parts[key].values()) for key, name in lists.items()}
        return {**fields, "machine-config": self._sizes}

    # Before the guest starts -----------------------------------------------------------------

    async def _log(self, body: Body) -> Answer:
        self._open_files.append(_open(body["log_path"], os.O_WRONLY | os.O_NONBLOCK | os.O_CREAT))
        os.write(self._open_files[-1], b"fake firecracker: logging started\n")
        return None

    async def _measure(self, body: Body) -> Answer:
        if "metrics" in self._parts:
            raise Fault("The metrics system was already initialized.")
        metrics = _open(body["metrics_path"], os.O_WRONLY | os.O_NONBLOCK | os.O_CREAT)
        os.write(metrics, json.dumps({"api_server": {}}).encode() + b"\n")
        self._open_files.append(metrics)
        self._parts["metrics"] = body
        return None

    async def _size(self, body: Body) -> Answer:
        count = body["vcpu_count"]
        if body["mem_size_mib"] < 1 or (body.get("smt") and count > 1 and count % 2):
            raise Fault("The machine configuration is invalid.")
        self._sizes = {**self._sizes, **body}
        return None

    async def _boot_source(self, body: Body) -> Answer:
        for key in ("kernel_image_path", "initrd_path"):
            if key in body:
                os.close(_open(body[key], os.O_RDONLY))
        self._parts["boot-source"] = body
        return None

    async def _drive(self, body: Body) -> Answer:
        if "path_on_host" not in body or "is_read_only" not in body:
            raise Fault("A drive needs path_on_host and is_read_only.")
        os.close(_open(body["path_on_host"], _mode(body)))
        self._parts["drives"][body["drive_id"]] = body
        return None

    async def _interface(self, body: Body) -> Answer:
        others = (v for k, v in self._parts["interfaces"].items() if k != body["iface_id"])
        if any(other.get("guest_mac") == body.get("guest_mac") for other in others):
            raise Fault(f"The MAC address is already in use: {body.get('guest_mac')}")
        self._open_files.append(_tap(body["host_dev_name"]))
        self._parts["interfaces"][body["iface_id"]] = body
        return None

    async def _vsock(self, body: Body) -> Answer:
        _require_free(body["uds_path"])
        self._parts["vsock"] = body
        return None

    async def _entropy(self, body: Body) -> Answer:
        self._parts["entropy"] = body
        return None

    async def _balloon(self, body: Body) -> Answer:
        if body["amount_mib"] > self._sizes["mem_size_mib"]:
            raise Fault("The balloon is larger than the guest's memory.")
        self._parts["balloon"] = body
        return None

    async def _load(self, body: Body) -> Answer:
        if self._parts["drives"] or self._parts["interfaces"] or len(self._parts) > 3:
            raise Fault("Loading a microVM snapshot not allowed after configuring other resources.")
        try:
            found = memory.load(body["snapshot_path"], body["mem_backend"]["backend_path"])
            if found["version"] != self._version:
                raise Fault(f"Load snapshot error: version {found['version']} is not supported")
            self._parts, self._sizes = found["parts"], found["sizes"]
            for override in body.get("network_overrides", ()):
                given = self._parts["interfaces"][override["iface_id"]]
                given["host_dev_name"] = override["host_dev_name"]
            self._open_all()
        except (OSError, ValueError, KeyError, Fault) as error:
            # As the real one: it answers, then exits.
            asyncio.get_running_loop().call_later(_DYING_S, self._give_up)
            raise Fault(f"Load snapshot error: {error}") from error
        await self._start(FakeGuest(self._parts, is_new=False))
        if body.get("resume_vm") and self._guest is not None:
            self._guest.resume()
        return None

    # While it runs ---------------------------------------------------------------------------

    async def _act(self, action: str) -> Answer:
        if action == "InstanceStart":
            if self._guest is not None:
                raise Fault(_AFTER)
            if "boot-source" not in self._parts:
                raise Fault("Cannot start microvm without kernel configuration.")
            self._require_kernel()
            await self._start(FakeGuest(self._parts, is_new=True))
        elif self._guest is None:
            raise Fault(_BEFORE)
        elif action == "SendCtrlAltDel":
            await self._guest.press_ctrl_alt_del()
        return None

    async def _change(self, body: Body) -> Answer:
        assert self._guest is not None  # noqa: S101 - checked by `perform`
        if body["state"] == "Paused":
            self._guest.pause()
        else:
            self._guest.resume()
        return None

    async def _save(self, body: Body) -> Answer:
        assert self._guest is not None  # noqa: S101 - checked by `perform`
        if self._guest.state != "Paused":
            raise Fault("Create snapshot error: the microVM is running")
        saved = {"version": self._version, "parts": self._parts, "sizes": self._sizes}
        try:
            memory.save(body["snapshot_path"], body["mem_file_path"], saved)
        except OSError as error:
            raise Fault(f"Create snapshot error: {error}") from error
        return None

    async def _resize_balloon(self, body: Body) -> Answer:
        if "balloon" not in self._parts:
            raise Fault("No balloon device found.")
        self._parts["balloon"] = {**self._parts["balloon"], **body}
        return None

    async def _balloon_statistics(self, _: Body) -> Answer:
        balloon = self._parts.get("balloon", {})
        if not balloon.get("stats_polling_interval_s"):
            raise Fault("Statistics for the balloon device are not enabled")
        mib = int(balloon["amount_mib"])
        return {"target_mib": mib, "actual_mib": mib, "target_pages": mib * 256,
                "actual_pages": mib * 256}  # fmt: skip

    # Helpers ---------------------------------------------------------------------------------

    async def _start(self, guest: FakeGuest) -> None:
        self._guest = guest
        await guest.start()
        self._tasks.append(asyncio.create_task(self._end_with(guest)))

    async def _end_with(self, guest: FakeGuest) -> None:
        status = await guest.ended()
        if not self._end.done():
            self._end.set_result(status)

    def _give_up(self) -> None:
        if not self._end.done():
            self._end.set_result(_FAILED_LOAD)

    def _require_kernel(self) -> None:
        with Path(self._parts["boot-source"]["kernel_image_path"]).open("rb") as kernel:
            if kernel.read(4) != b"\x7fELF":
                raise Fault("Cannot load kernel due to invalid memory configuration or image")

    def _open_all(self) -> None:
        """Open a loaded machine's files, at the same paths."""
        for drive in self._parts["drives"].values():
            os.close(_open(drive["path_on_host"], _mode(drive)))
        self._open_files += [_tap(it["host_dev_name"]) for it in self._parts["interfaces"].values()]
        if "vsock" in self._parts:
            _require_free(self._parts["vsock"]["uds_path"])


def _require_free(path: str) -> None:
    if os.path.lexists(path):
        raise Fault("Cannot create vsock device: Address in use (os error 98)")


def _mode(drive: Body) -> int:
    return os.O_RDONLY if drive["is_read_only"] else os.O_RDWR


def _open(path: str, flags: int) -> int:
    try:
        return os.open(path, flags | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise Fault(f"{error.strerror} (os error {error.errno}) {path}") from error


def _tap(name: str) -> int:
    descriptor = _open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    flags = _IFF_TAP | _IFF_NO_PI | _IFF_VNET_HDR
    try:
        fcntl.ioctl(descriptor, _TUNSETIFF, struct.pack("16sH22x", name.encode(), flags))
    except OSError as error:
        os.close(descriptor)
        raise Fault(f"Open tap device failed: {error} {name}") from error
    return descriptor
