"""`Hosts`: the clients of all VM hosts, by name.

`workflows/host_watch.py` tells it which there are; whoever has a machine's row asks it for that
machine's host. It knows no database.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from polydev.shared.domain import HostId
from polydev.shared.errors import HostUnreachable
from polydev.shared.host_client.client import Host, Observe


class Hosts:
    """The hosts that this controller speaks to."""

    def __init__(self, observe: Observe | None = None) -> None:
        self._observe = observe
        self._hosts: dict[HostId, Host] = {}

    def of(self, host_id: HostId | None) -> Host:
        """The client of a host. Raises HostUnreachable for one that is not known (yet)."""
        host = None if host_id is None else self._hosts.get(host_id)
        if host is None:
            raise HostUnreachable(
                f"The host {host_id} is not known to this controller",
                hint="POLYDEV_HOSTS names the hosts",
            )
        return host

    def every(self) -> Mapping[HostId, Host]:
        """All of them, as they are now."""
        return MappingProxyType(dict(self._hosts))

    async def become(self, sockets: Mapping[HostId, Path]) -> None:
        """Know these hosts, at these sockets, and no others."""
        for host_id, host in list(self._hosts.items()):
            if sockets.get(host_id) != host.socket:
                del self._hosts[host_id]
                await host.aclose()
        for host_id in sockets.keys() - self._hosts.keys():
            self._hosts[host_id] = Host(sockets[host_id], observe=self._observe)

    async def aclose(self) -> None:
        """Let go of all."""
        await self.become({})
