"""Clients of all VM hosts, by name. The host poller updates them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from polydev.shared.domain import HostId
from polydev.shared.errors import HostUnreachable
from polydev.shared.hints import Hint
from polydev.shared.host_client.client import HostClient, Observe


class HostClients:
    """Clients of the hosts that this controller uses."""

    def __init__(self, observe: Observe | None = None) -> None:
        self._observe = observe
        self._clients: dict[HostId, HostClient] = {}

    def client(self, host_id: HostId | None) -> HostClient:
        """Get the client of a host. Raises HostUnreachable for an unknown one."""
        client = None if host_id is None else self._clients.get(host_id)
        if client is None:
            raise HostUnreachable(
                f"This controller does not know the host {host_id}",
                hint=Hint.LIST_HOSTS.text(),
            )
        return client

    def clients(self) -> Mapping[HostId, HostClient]:
        """Return all current clients by host."""
        return MappingProxyType(dict(self._clients))

    async def replace(self, sockets: Mapping[HostId, Path]) -> None:
        """Replace the hosts; keep the clients of those that stay."""
        for host_id, client in list(self._clients.items()):
            if sockets.get(host_id) != client.socket:
                del self._clients[host_id]
                await client.aclose()
        for host_id in sockets.keys() - self._clients.keys():
            self._clients[host_id] = HostClient(sockets[host_id], observe=self._observe)

    async def aclose(self) -> None:
        """Close all clients."""
        await self.replace({})
