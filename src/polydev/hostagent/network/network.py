"""The VM network of one host: a namespace with bridge, TAPs, rules and uplink.

The machines' service attaches and detaches machines; `doctor` and the inventory inspect it. It can
be set up again at any time (`ensure`), and removing it leaves nothing. It knows machines only by id
and uid.
"""

from __future__ import annotations

import asyncio
import errno
import json
import logging
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address
from typing import Self, TypeVar

from polydev.hostagent.network import drift_check, firewall
from polydev.hostagent.network.addresses import AddressPool
from polydev.hostagent.network.bridge import Links
from polydev.hostagent.network.firewall import Sender
from polydev.hostagent.network.network_config import UPLINK, NetworkConfig, mac_of
from polydev.hostagent.network.uplink import Uplink
from polydev.hostagent.settings import HostSettings
from polydev.hostagent.system import namespaces
from polydev.shared.domain import Finding
from polydev.shared.errors import DiskFull, NetworkFailed

_log = logging.getLogger(__name__)
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Attachment:
    """A machine's attachment to the VM network, and its channel's port."""

    tap: str
    mac: str
    address: str
    prefix: int
    channel_port: int
    channel_mac: str


@dataclass(frozen=True, slots=True)
class NetworkState:
    """The current state, read from the kernel and the lease file."""

    taps: tuple[str, ...]
    addresses: dict[str, str]
    """vm_id -> address: the leases."""
    firewall: tuple[str, ...]
    """Interfaces in the anti-spoofing set."""


class Network:
    """The VM network. Every method can be called at any time, any number of times."""

    def __init__(self, config: NetworkConfig) -> None:
        self._config = config
        self._pool = AddressPool(config)
        self._uplink = Uplink(config) if config.has_uplink else None
        self._inside: _NamespaceWorker | None = None
        self._ensuring = asyncio.Lock()

    @classmethod
    def from_settings(cls, settings: HostSettings) -> Self:
        return cls(NetworkConfig.from_settings(settings))

    @property
    def netns(self) -> str:
        return self._config.netns

    async def ensure(self) -> None:
        """Set the network up or repair it; attached machines stay attached.

        Raises: NetworkFailed, MissingTool.
        """
        async with self._ensuring:
            with _kernel_errors("The VM network cannot be set up"):
                await asyncio.to_thread(namespaces.create, self._config.netns)
                inside = await self._worker()
                await inside.run(self._set_up_inside)
                if self._uplink is not None:
                    await self._set_up_uplink(inside, self._uplink)

    async def attach(self, vm_id: str, uid: int) -> Attachment:
        """Give a machine address, rules and a TAP that `uid` may open.

        A machine gets the same attachment every time. Raises: NoCapacity, NetworkFailed.
        """
        with _kernel_errors(f"{vm_id} cannot be attached to the VM network"):
            inside = await self._worker()
            return await inside.run(self._attach, vm_id, uid)

    async def rename(self, vm_id: str, new_vm_id: str) -> None:
        """Move a machine's attachment to a new id. Raises: DiskFull."""
        with _kernel_errors(f"{vm_id} cannot be renamed in the VM network"):
            inside = await self._worker()
            await inside.run(lambda _: self._pool.rename(vm_id, new_vm_id))

    async def detach(self, vm_id: str) -> None:
        """Remove a machine's TAP, rules and address. Idempotent."""
        with _kernel_errors(f"{vm_id} cannot be detached from the VM network"):
            inside = await self._worker()
            await inside.run(self._detach, [vm_id])

    async def sweep(self, keep: Collection[str] | None) -> list[str]:
        """Remove TAPs, rules and addresses of machines other than `keep`.

        None keeps every machine that has an address. Returns the TAPs that had none.
        """
        with _kernel_errors("The VM network cannot be cleaned up"):
            inside = await self._worker()
            return await inside.run(self._sweep, None if keep is None else frozenset(keep))

    async def state(self) -> NetworkState:
        """Read the current state; empty without a network."""
        if not namespaces.exists(self._config.netns):
            return NetworkState((), {}, ())
        with _kernel_errors("The VM network cannot be inspected"):
            inside = await self._worker()
            return await inside.run(self._read_state)

    async def inspect(self, running: Mapping[str, int]) -> list[Finding]:
        """Compare the actual state with the expected one, with a hint for each difference.

        `running` maps the machines that have a VMM to their uid. Changes nothing.
        """
        if not namespaces.exists(self._config.netns):
            return [drift_check.missing_namespace(self._config)]
        with _kernel_errors("The VM network cannot be inspected"):
            inside = await self._worker()
            found = await inside.run(self._inspect_inside, running)
            if self._uplink is not None:
                outside = _NamespaceWorker(self._config.uplink_netns)
                try:
                    found += await outside.run(drift_check.check_uplink, self._config)
                finally:
                    await outside.close()
            return found

    async def remove(self) -> None:
        """Remove everything, namespace included, and restore what the uplink changed."""
        async with self._ensuring:
            with _kernel_errors("The VM network cannot be removed"):
                await self.close()
                if self._uplink is not None:
                    await self._remove_uplink(self._uplink)
                await asyncio.to_thread(namespaces.remove, self._config.netns)
                self._pool.load()
                self._pool.remove_file_if_empty()

    async def close(self) -> None:
        """Release the network without changing it."""
        if self._inside is not None:
            await self._inside.close()
            self._inside = None

    async def _worker(self) -> _NamespaceWorker:
        """Return the thread in the VM namespace: a new one if the namespace was recreated."""
        if self._inside is not None and not self._inside.is_current:
            await self.close()
        if self._inside is None:
            if not namespaces.exists(self._config.netns):
                raise NetworkFailed(
                    f"There is no network namespace {self._config.netns}",
                    hint="Restart the host agent, which sets the network up",
                )
            self._pool.load()
            self._inside = _NamespaceWorker(self._config.netns)
        return self._inside

    async def _set_up_uplink(self, inside: _NamespaceWorker, uplink: Uplink) -> None:
        outside = _NamespaceWorker(self._config.uplink_netns)
        try:
            if not await inside.run(lambda links: links.index_of(UPLINK) is not None):
                await outside.run(uplink.clear_stale)
            await inside.run(uplink.connect)
            await outside.run(uplink.set_up_outer)
            await inside.run(uplink.route)
        finally:
            await outside.close()

    async def _remove_uplink(self, uplink: Uplink) -> None:
        name = self._config.uplink_netns
        if name is not None and not namespaces.exists(name):
            return
        outside = _NamespaceWorker(name)
        try:
            await outside.run(uplink.remove)
        finally:
            await outside.close()

    def _set_up_inside(self, links: Links) -> None:
        links.set_up_bridge(self._config)
        senders = self._senders(links)
        firewall.load(firewall.vm_rules(self._config, senders))
        for sender in senders:
            links.connect_tap(sender.tap, sender.mac, IPv4Address(sender.address))

    def _attach(self, links: Links, vm_id: str, uid: int) -> Attachment:
        is_new = vm_id not in self._pool.leases()
        address = self._pool.lease(vm_id)
        sender = self._sender(address)
        try:
            firewall.load(firewall.allow_sender(sender))
            links.add_tap(sender.tap, sender.mac, address, uid)
        except BaseException:
            if is_new:
                self._detach(links, [vm_id])
            raise
        return Attachment(
            tap=sender.tap,
            mac=sender.mac,
            address=str(address),
            prefix=self._config.subnet.prefixlen,
            channel_port=self._config.channel_port_base + self._config.index_of(address),
            channel_mac=mac_of(address, role=2),
        )

    def _detach(self, links: Links, vm_ids: Collection[str]) -> None:
        leases = self._pool.leases()
        for address in (leases[vm_id] for vm_id in vm_ids if vm_id in leases):
            sender = self._sender(address)
            links.remove_tap(sender.tap, address)
            firewall.load(firewall.deny_sender(sender))
            links.end_connections(sender.mark)
        self._pool.release(*vm_ids)

    def _sweep(self, links: Links, keep: frozenset[str] | None) -> list[str]:
        if keep is not None:
            self._detach(links, self._pool.leases().keys() - keep)
        leased = {self._config.tap_of(address) for address in self._pool.leases().values()}
        strays = [tap for tap in links.taps() if tap not in leased]
        for tap in strays:
            _log.warning("removing TAP %s: it belongs to no machine", tap)
            links.remove(tap)
        if {element["tap"] for element in _elements()} - leased:
            firewall.load(firewall.vm_rules(self._config, self._senders(links)))
        return strays

    def _read_state(self, links: Links) -> NetworkState:
        return NetworkState(
            taps=tuple(links.taps()),
            addresses={vm_id: str(address) for vm_id, address in self._pool.leases().items()},
            firewall=tuple(sorted(element["tap"] for element in _elements())),
        )

    def _inspect_inside(self, links: Links, running: Mapping[str, int]) -> list[Finding]:
        leases = self._pool.leases()
        ports = [
            drift_check.MachinePort(vm_id, running.get(vm_id), address, self._sender(address))
            for vm_id, address in leases.items()
        ]
        return drift_check.check_namespace(links, self._config, ports)

    def _senders(self, links: Links) -> list[Sender]:
        """Return one sender for each lease whose TAP exists."""
        taps = set(links.taps())
        senders = (self._sender(address) for address in self._pool.leases().values())
        return [sender for sender in senders if sender.tap in taps]

    def _sender(self, address: IPv4Address) -> Sender:
        return Sender(self._config.tap_of(address), mac_of(address, role=1), str(address))


class _NamespaceWorker:
    """A thread in a namespace, with access to its devices."""

    def __init__(self, name: str | None) -> None:
        self._thread = namespaces.NamespaceThread(name)
        self._links: Links | None = None

    @property
    def is_current(self) -> bool:
        return self._thread.is_current

    async def run(self, call: Callable[..., T], *args: object) -> T:
        """Call `call(links, *args)` in the thread."""
        return await self._thread.run(self._with_links, call, *args)

    async def close(self) -> None:
        await self._thread.run(self._close_links)
        self._thread.close()

    def _with_links(self, call: Callable[..., T], *args: object) -> T:
        if self._links is None:
            self._links = Links()
        return call(self._links, *args)

    def _close_links(self) -> None:
        if self._links is not None:
            self._links.close()
            self._links = None


class _kernel_errors:  # noqa: N801 - used as a context manager
    """Translates kernel errors to Polydev's; others pass."""

    def __init__(self, what: str) -> None:
        self._what = what

    def __enter__(self) -> None:
        return None

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        if error is None:
            return
        from pyroute2.netlink.exceptions import NetlinkError

        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            raise DiskFull(f"{self._what}: no space left on {error.filename}") from error
        if isinstance(error, (OSError, NetlinkError)):
            raise NetworkFailed(f"{self._what}: {error}") from error


def _elements() -> list[dict[str, str]]:
    """Return the elements of the anti-spoofing set."""
    text = firewall.list_senders()
    if not text:
        return []
    sets = [entry["set"] for entry in json.loads(text)["nftables"] if "set" in entry]
    found = (element["concat"] for entry in sets for element in entry.get("elem", []))
    return [{"tap": tap, "mac": mac, "address": address} for tap, mac, address in found]
