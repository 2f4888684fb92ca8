"""Namespaces and fake machines on TAPs, for tests of the VM network.

    machines' TAPs - [VM namespace] - uplink - [outer namespace] - veth - [world]

The outer namespace stands for the host, the world for everything beyond it. Each test has its own.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import select
import socket
import struct
import subprocess
import time
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from ipaddress import IPv4Address
from typing import TypeVar

from polydev.hostagent.network import Attachment
from polydev.hostagent.system import namespaces

WORLD = "198.51.100.1"
HOST = "198.51.100.2"
"""The outer namespace's own public address."""
PRIVATE = ("10.1.2.3", "172.16.5.5", "192.168.7.7", "169.254.169.254", "100.64.9.9")
"""Outside addresses that machines must not reach."""
GATEWAY = "192.168.100.1"
GATEWAY_MAC = "02:00:c0:a8:64:01"
ANY = "0.0.0.0"  # noqa: S104 - within a namespace of the test's own
PATIENCE_S = 60

A, B, C = (f"vm-00000000-0000-4000-8000-00000000000{n}" for n in "abc")
UID = 1_900_000_001
PORT = 7000

IP, ARP, IP6, VLAN = 0x0800, 0x0806, 0x86DD, 0x8100
ICMP, TCP, UDP = 1, 6, 17
SYN, SYN_ACK = 0x02, 0x12
SO_RCVBUFFORCE = 33  # socket(7)
_VNET_HEADER = bytes(10)

T = TypeVar("T")


def within(name: str, call: Callable[[], T]) -> T:
    """Make a blocking call inside a namespace."""
    with ThreadPoolExecutor(1) as thread:

        def inside() -> T:
            namespaces.enter(namespaces.path_of(name))
            return call()

        return thread.submit(inside).result()


def ip(name: str, *arguments: str) -> str:
    """Run `ip -n <name> ...`."""
    command = ["ip", "-n", name, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def run_inside(name: str, *command: str) -> str:
    whole = ["ip", "netns", "exec", name, *command]
    return subprocess.run(whole, check=True, capture_output=True, text=True).stdout


@dataclass(frozen=True)
class Surroundings:
    """The namespaces around the VM namespace, which the network itself creates."""

    vm: str
    outer: str
    world: str

    def listen(self, name: str, address: str, port: int) -> socket.socket:
        """Open a UDP socket in a namespace."""

        def bound() -> socket.socket:
            sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            sock.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 16 * 1024 * 1024)
            sock.bind((address, port))
            sock.settimeout(PATIENCE_S)
            return sock

        return within(name, bound)

    def listen_tcp(self, name: str, address: str, port: int) -> socket.socket:
        return within(name, lambda: socket.create_server((address, port)))


@contextlib.contextmanager
def create_surroundings() -> Iterator[Surroundings]:
    tag = f"pdt-{secrets.token_hex(3)}"
    surroundings = Surroundings(vm=f"{tag}-vm", outer=f"{tag}-outer", world=f"{tag}-world")
    try:
        for name in (surroundings.outer, surroundings.world):
            namespaces.create(name)
            ip(name, "link", "set", "lo", "up")
        _join(surroundings)
        yield surroundings
    finally:
        for name in (surroundings.vm, surroundings.outer, surroundings.world):
            namespaces.remove(name)


def _join(surroundings: Surroundings) -> None:
    outer, world = surroundings.outer, surroundings.world
    ip(outer, "link", "add", "out", "type", "veth", "peer", "name", "in", "netns", world)
    for name, device, address in ((outer, "out", HOST), (world, "in", WORLD)):
        ip(name, "addr", "add", f"{address}/24", "dev", device)
        ip(name, "link", "set", device, "up")
    for address in PRIVATE:
        ip(world, "addr", "add", f"{address}/32", "dev", "lo")
    ip(outer, "route", "add", "default", "via", WORLD)
    ip(world, "route", "add", "192.168.100.0/24", "via", HOST)


class FakeMachine:
    """Holds a TAP open as a VMM would."""

    def __init__(self, name: str, attachment: Attachment) -> None:
        self.attachment = attachment
        self.mac, self.address = attachment.mac, attachment.address
        self._fd = within(name, self._open)

    def _open(self) -> int:
        fd = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
        flags = 0x0002 | 0x1000 | 0x4000  # TAP, no packet information, virtio header
        fcntl.ioctl(fd, 0x400454CA, struct.pack("16sH22x", self.attachment.tap.encode(), flags))
        return fd

    def close(self) -> None:
        os.close(self._fd)

    def send(self, frame: bytes) -> None:
        os.write(self._fd, _VNET_HEADER + frame)

    def frames(self, timeout_s: float = 0) -> Iterator[bytes]:
        """Received frames, and those that arrive within `timeout_s`."""
        until = time.monotonic() + timeout_s
        while select.select([self._fd], [], [], max(0.0, until - time.monotonic()))[0]:
            yield os.read(self._fd, 65536)[len(_VNET_HEADER) :]

    def expect(self, wanted: Callable[[bytes], bool]) -> list[bytes]:
        """All frames up to and including the first wanted one."""
        seen = []
        for frame in self.frames(PATIENCE_S):
            seen.append(frame)
            if wanted(frame):
                return seen
        raise AssertionError(
            f"{self.attachment.tap} waited in vain, after {len(seen)} other frames"
        )

    def settle(self) -> None:
        """Wait until the bridge forwards frames of the TAP."""
        for _ in range(PATIENCE_S * 10):
            self.send(self.echo(GATEWAY))
            if any(is_echo_reply(frame) for frame in self.frames(0.1)):
                list(self.frames())
                return
        raise AssertionError(f"the gateway never answers on {self.attachment.tap}")

    def fence(self) -> list[bytes]:
        """Frames received so far, once all sent frames have had their effect."""
        self.send(self.echo(GATEWAY))
        return self.expect(is_echo_reply)[:-1]

    def echo(self, to: str) -> bytes:
        return self.packet(to, ICMP, with_checksum(struct.pack("!BBHHH", 8, 0, 0, 7, 7), at=2))

    def udp(self, to: str, port: int, data: bytes, **forged: str) -> bytes:
        source_port = int(forged.pop("source_port", "40000"))
        header = struct.pack("!HHHH", source_port, port, 8 + len(data), 0)
        return self.packet(to, UDP, header + data, **forged)

    def syn(self, to: str, port: int) -> bytes:
        segment = struct.pack("!HHIIBBHHH", 40001, port, 1, 0, 0x50, SYN, 65535, 0, 0)
        source, destination = IPv4Address(self.address).packed, IPv4Address(to).packed
        pseudo = source + destination + struct.pack("!BBH", 0, TCP, len(segment))
        total = checksum(pseudo + segment)
        return self.packet(to, TCP, segment[:16] + struct.pack("!H", total) + segment[18:])

    def packet(
        self, to: str, protocol: int, payload: bytes, *, source: str = "", mac: str = "",
        to_mac: str = GATEWAY_MAC,
    ) -> bytes:  # fmt: skip
        """An Ethernet frame with an IPv4 packet; source addresses can be forged."""
        addresses = IPv4Address(source or self.address).packed + IPv4Address(to).packed
        head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(payload), 1, 0, 64, protocol, 0)
        return ethernet(
            to_mac, mac or self.mac, IP, with_checksum(head + addresses, at=10) + payload
        )

    def arp(
        self, target: str, *, operation: int = 1, sender: str = "", sender_mac: str = "",
        mac: str = "",
    ) -> bytes:  # fmt: skip
        """A broadcast ARP packet; sender addresses can be forged."""
        body = struct.pack("!HHBBH", 1, IP, 6, 4, operation)
        body += packed(sender_mac or self.mac) + IPv4Address(sender or self.address).packed
        body += bytes(6) + IPv4Address(target).packed
        return ethernet("ff:ff:ff:ff:ff:ff", mac or self.mac, ARP, body)


Attach = Callable[[str], Awaitable[FakeMachine]]
"""Attach a machine of that name to the network and open its TAP."""


def ethernet(to: str, source: str, kind: int, payload: bytes) -> bytes:
    frame = packed(to) + packed(source) + struct.pack("!H", kind) + payload
    return frame.ljust(60, b"\0")


def tagged(frame: bytes, vlan: int = 1) -> bytes:
    """The same frame with a VLAN tag."""
    return frame[:12] + struct.pack("!HH", VLAN, vlan) + frame[12:]


def packed(mac: str) -> bytes:
    return bytes.fromhex(mac.replace(":", ""))


def checksum(data: bytes) -> int:
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    total = (total & 0xFFFF) + (total >> 16)
    return ~(total + (total >> 16)) & 0xFFFF


def with_checksum(data: bytes, at: int) -> bytes:
    return data[:at] + struct.pack("!H", checksum(data)) + data[at + 2 :]


def kind_of(frame: bytes) -> int:
    return int(struct.unpack_from("!H", frame, 12)[0])


def is_icmp(frame: bytes, icmp_type: int) -> bool:
    return kind_of(frame) == IP and frame[23] == ICMP and frame[34] == icmp_type


def is_echo_reply(frame: bytes) -> bool:
    return is_icmp(frame, 0)


def is_unreachable(frame: bytes) -> bool:
    return is_icmp(frame, 3)


def is_syn_ack(frame: bytes) -> bool:
    return kind_of(frame) == IP and frame[23] == TCP and frame[47] == SYN_ACK
