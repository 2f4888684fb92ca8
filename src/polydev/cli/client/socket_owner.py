"""Who is at the other end of a TCP connection on this machine: the kernel's word, not the peer's.

Any user of this machine can listen on the controller's port while the controller is down. So
nothing secret is sent there before the kernel has said whose the other end is (proc_net_tcp,
`Documentation/networking/proc_net_tcp.rst`). `controller.py`, `up` and `doctor` ask; it knows
nothing of HTTP.

The connection is asked about, not the listener: who listens may have changed by the time that one
connects, the two ends of a connection cannot. A connection that nobody has accepted yet has no
inode and is shown as root's, whoever listens, so it is asked about again until it has been.
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
    """Whose a socket is."""

    uid: int
    inode: int
    """0: nobody has accepted it yet, and `uid` means nothing."""

    @property
    def name(self) -> str:
        """The user, in words."""
        try:
            return f"{pwd.getpwuid(self.uid).pw_name} (uid {self.uid})"
        except KeyError:
            return f"uid {self.uid}"


@dataclass(frozen=True, slots=True)
class Owners:
    """The users that may answer for a controller."""

    uids: frozenset[int]

    @classmethod
    def of(cls, state_dir: Path, user: str) -> Owners:
        """Root, whoever asks, and the controller's user: the owner of its folder, if there is one.

        `user` names the one that it would be started as.
        """
        uids = {0, os.geteuid()}
        try:
            uids.add((state_dir / "controller").lstat().st_uid)
        except OSError:
            uids |= {entry.pw_uid for entry in pwd.getpwall() if entry.pw_name == user}
        return cls(frozenset(uids))

    async def require(self, connected: socket.socket) -> None:
        """Return when one of them has accepted the connection.

        Raises PortTaken, naming who it is instead; TimeoutError when nobody accepts it.
        """
        here, api = _address(connected.getsockname()), _address(connected.getpeername())
        async with asyncio.timeout(ACCEPT_LIMIT_S):
            while (owner := _accepted(api, here)) is None or not owner.inode:  # noqa: ASYNC110
                await asyncio.sleep(_ASK_EVERY_S)  # nothing tells of an accept
        if owner.uid not in self.uids:
            raise wrong_owner_error(api[1], owner)


def wrong_owner_error(port: int, owner: Owner, program: str = "") -> PortTaken:
    """The error for a port that is somebody else's."""
    what = f", {program}," if program else ""
    return PortTaken(
        f"Port {port} is not the controller's: a program of the user {owner.name}{what} answers "
        "there, and was sent nothing",
        hint=f"End it (`ss -ltnp 'sport = :{port}'` shows it), then `polydev up`; or set PORT to "
        "another port",
    )


def listeners(port: int) -> list[Owner]:
    """Who listens on a port of this machine, on whatever address."""
    return [
        Owner(uid, inode)
        for local, _, state, uid, inode in _entries()
        if state == _LISTEN and local[1] == port
    ]


def describe_program(owner: Owner) -> str:
    """The process that holds a socket, in words; empty when it cannot be seen (root sees all)."""
    wanted = f"socket:[{owner.inode}]"
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if any(str(fd.readlink()) == wanted for fd in (process / "fd").iterdir()):
                return f"{(process / 'comm').read_text().strip()}, process {process.name}"
        except OSError:
            continue
    return ""


def _accepted(local: Address, remote: Address) -> Owner | None:
    """Whose the end of a connection is that is `local` to itself."""
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
            words = line.split()
            if len(words) >= _COLUMNS:
                yield _told(words[1]), _told(words[2]), words[3], int(words[7]), int(words[9])


def _told(words: str) -> Address:
    """`0100007F:0FA0`: an address in 32-bit words of this machine's byte order, and a port."""
    text, _, port = words.partition(":")
    quads = (bytes.fromhex(text[at : at + 8])[::-1] for at in range(0, len(text), 8))
    return _plain(ipaddress.ip_address(b"".join(quads))), int(port, 16)


def _address(name: tuple[str, int] | tuple[str, int, int, int]) -> Address:
    return _plain(ipaddress.ip_address(name[0].partition("%")[0])), name[1]


def _plain(
    address: ipaddress.IPv4Address | ipaddress.IPv6Address,
) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    """An IPv4 address is the same one where an IPv6 socket has it."""
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return mapped or address
