"""Clients of all VM hosts, by name. The host poller updates them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from polydev.shared.domain import HostId
from polydev.shared.errors import HostUnreachable
from polydev.shared.hints import Hint
from polydev.shared.host_client.client import Host, Observe


class Hosts:
    """Hosts that this controller uses."""

    def __init__(self, observe: Observe | None = None) -> None:
        self._observe = observe
        self._hosts: dict[HostId, Host] = {}

    def client(self, host_id: HostId | None) -> Host:
        """Get the client of a host. Raises HostUnreachable for an unknown one."""
        host = None if host_id is None else self._hosts.get(host_id)
        if host is None:
            raise HostUnreachable(
                f"This controller does not know the host {host_id}",
                hint=Hint.LIST_HOSTS.text(),
            )
        return host

    def clients(self) -> Mapping[HostId, Host]:
        """Return all current clients by host."""
        return MappingProxyType(dict(self._hosts))

    async def replace(self, sockets: Mapping[HostId, Path]) -> None:
        """Replace the hosts; keep the clients of those that stay."""
        for host_id, host in list(self._hosts.items()):
            if sockets.get(host_id) != host.socket:
                del self._hosts[host_id]
                await host.aclose()
        for host_id in sockets.keys() - self._hosts.keys():
            self._hosts[host_id] = Host(sockets[host_id], observe=self._observe)

    async def aclose(self) -> None:
        """Close all clients."""
        await self.replace({})
