"""Owner of the other end of a local TCP connection, from the kernel.

Any user of this machine can listen on the controller's port while the controller is down, so
commands check the owner before they send a token. Source: `Documentation/networking/
proc_net_tcp.rst` of Linux.

The check covers the connection, not the listener, which may change before the connection is made.
A connection that no process has accepted yet has no inode and appears as root's, so the check
repeats until it is accepted.
"""

from __future__ import annotations

import asyncio
import ipaddress
import os
import pwd
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from polydev.shared.errors import PortTaken

ACCEPT_LIMIT_S = 10.0
_ASK_EVERY_S = 0.01
_TABLES = ("/proc/net/tcp", "/proc/net/tcp6")
_ESTABLISHED, _LISTEN = "01", "0A"
_COLUMNS = 10

Address = tuple[ipaddress.IPv4Address | ipaddress.IPv6Address, int]


@dataclass(frozen=True, slots=True)
class Owner:
    """Owner of a socket."""

    uid: int
    inode: int
    """0 until the connection is accepted; `uid` has no meaning until then."""

    @property
    def name(self) -> str:
        """Name and id of the user."""
        try:
            return f"{pwd.getpwuid(self.uid).pw_name} (uid {self.uid})"
        except KeyError:
            return f"uid {self.uid}"


@dataclass(frozen=True, slots=True)
class Owners:
    """Users that may own the controller's socket."""

    uids: frozenset[int]

    @classmethod
    def for_instance(cls, state_dir: Path, user: str) -> Owners:
        """Allow root, the current user and the controller's user.

        The controller's user owns its folder; without a folder, it is `user`.
        """
        uids = {0, os.geteuid()}
        try:
            uids.add((state_dir / "controller").lstat().st_uid)
        except OSError:
            uids |= {entry.pw_uid for entry in pwd.getpwall() if entry.pw_name == user}
        return cls(frozenset(uids))

    async def require(self, connected: socket.socket) -> None:
        """Wait until one of these users has accepted the connection.

        Raises: PortTaken, which names the actual owner; TimeoutError if no process accepts it.
        """
        here, api = _address(connected.getsockname()), _address(connected.getpeername())
        async with asyncio.timeout(ACCEPT_LIMIT_S):
            while (owner := _accepted(api, here)) is None or not owner.inode:  # noqa: ASYNC110
                await asyncio.sleep(_ASK_EVERY_S)  # the kernel does not notify about it
        if owner.uid not in self.uids:
            raise wrong_owner_error(api[1], owner)


def wrong_owner_error(port: int, owner: Owner, program: str = "") -> PortTaken:
    """Create the error for a port that another user owns."""
    what = f", {program}," if program else ""
    return PortTaken(
        f"Port {port} is not the controller's: a program of the user {owner.name}{what} listens "
        "there. Nothing was sent to it",
        hint=f"Stop that program (`ss -ltnp 'sport = :{port}'` shows it) and run "
        "`polydev up`, or set PORT to another port",
    )


def listeners(port: int) -> list[Owner]:
    """Owners of the sockets that listen on a local port."""
    return [
        Owner(uid, inode)
        for local, _, state, uid, inode in _entries()
        if state == _LISTEN and local[1] == port
    ]


def describe_program(owner: Owner) -> str:
    """Name and pid of the process that holds a socket; empty if not visible to this user."""
    wanted = f"socket:[{owner.inode}]"
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if any(str(fd.readlink()) == wanted for fd in (process / "fd").iterdir()):
                return f"{(process / 'comm').read_text().strip()}, process {process.name}"
        except OSError:
            continue
    return ""


def _accepted(local: Address, remote: Address) -> Owner | None:
    """Owner of one end of a connection, from its own point of view."""
    for here, api, state, uid, inode in _entries():
        if (here, api) == (local, remote) and state == _ESTABLISHED:
            return Owner(uid, inode)
    return None


def _entries() -> Iterator[tuple[Address, Address, str, int, int]]:
    for table in _TABLES:
        try:
            lines = Path(table).read_text("ascii").splitlines()[1:]
        except FileNotFoundError:
            continue
        for line in lines:
            fields = line.split()
            if len(fields) >= _COLUMNS:
                yield (
                    _parse_address(fields[1]),
                    _parse_address(fields[2]),
                    fields[3],
                    int(fields[7]),
                    int(fields[9]),
                )


def _parse_address(field: str) -> Address:
    """Parse `0100007F:0FA0`: an address in 32-bit words of host byte order, and a port."""
    text, _, port = field.partition(":")
    quads = (bytes.fromhex(text[at : at + 8])[::-1] for at in range(0, len(text), 8))
    return _plain(ipaddress.ip_address(b"".join(quads))), int(port, 16)


def _address(name: tuple[str, int] | tuple[str, int, int, int]) -> Address:
    return _plain(ipaddress.ip_address(name[0].partition("%")[0])), name[1]


def _plain(
    address: ipaddress.IPv4Address | ipaddress.IPv6Address,
) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    """Unwrap an IPv4 address that an IPv6 socket reports."""
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return mapped or address
