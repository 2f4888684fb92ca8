"""The VM network of one host: one namespace with a bridge, TAPs, rules and an uplink.

`machines.py` calls it to give each machine its place; `doctor` and the inventory look at it. All
of it can be put together again at any time (`ensure`), and removing it leaves nothing. It knows
machines by id and uid only.
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
from polydev.hostagent.network.network_config import UPLINK, NetworkPlan, mac_of
from polydev.hostagent.network.uplink import Uplink
from polydev.hostagent.settings import HostSettings
from polydev.hostagent.system import namespaces
from polydev.shared.domain import Finding
from polydev.shared.errors import DiskFull, NetworkFailed

_log = logging.getLogger(__name__)
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Attachment:
    """A machine's place in the VM network, and its channel's port on the namespace's loopback."""

    tap: str
    mac: str
    address: str
    prefix: int
    channel_port: int
    channel_mac: str


@dataclass(frozen=True, slots=True)
class NetworkState:
    """What is there, by looking."""

    taps: tuple[str, ...]
    addresses: dict[str, str]
    """vm_id -> address: the leases."""
    firewall: tuple[str, ...]
    """Interfaces that the anti-spoofing set names."""


class Network:
    """The VM network. Its methods may be called at any time and any number of times."""

    def __init__(self, plan: NetworkPlan) -> None:
        self._plan = plan
        self._pool = AddressPool(plan)
        self._uplink = Uplink(plan) if plan.has_uplink else None
        self._inside: _Place | None = None
        self._ensuring = asyncio.Lock()

    @classmethod
    def from_settings(cls, settings: HostSettings) -> Self:
        return cls(NetworkPlan.from_settings(settings))

    @property
    def netns(self) -> str:
        return self._plan.netns

    async def ensure(self) -> None:
        """Put the network together, or mend it. Machines that are attached stay attached.

        Raises: NetworkFailed, MissingTool.
        """
        async with self._ensuring:
            with _translated("The VM network cannot be put together"):
                await asyncio.to_thread(namespaces.create, self._plan.netns)
                inside = await self._place()
                await inside.run(self._set_up_inside)
                if self._uplink is not None:
                    await self._set_up_uplink(inside, self._uplink)

    async def attach(self, vm_id: str, uid: int) -> Attachment:
        """Give a machine its address, its rules and its TAP, which `uid` may open.

        The same machine gets the same place every time. Raises: NoCapacity, NetworkFailed.
        """
        with _translated(f"{vm_id} cannot be attached to the VM network"):
            inside = await self._place()
            return await inside.run(self._attach, vm_id, uid)

    async def rename(self, vm_id: str, new_vm_id: str) -> None:
        """A machine has another name from now on; its place stays as it is. Raises: DiskFull."""
        with _translated(f"{vm_id} cannot be renamed in the VM network"):
            inside = await self._place()
            await inside.run(lambda _: self._pool.rename(vm_id, new_vm_id))

    async def detach(self, vm_id: str) -> None:
        """Take a machine's TAP, rules and address. Does nothing if it has none."""
        with _translated(f"{vm_id} cannot be detached from the VM network"):
            inside = await self._place()
            await inside.run(self._detach, [vm_id])

    async def sweep(self, keep: Collection[str] | None) -> list[str]:
        """Remove what belongs to no machine of `keep`: TAPs, rules and addresses.

        None: every machine that has an address is kept. Returns the TAPs that had none.
        """
        with _translated("The VM network cannot be swept"):
            inside = await self._place()
            return await inside.run(self._sweep, None if keep is None else frozenset(keep))

    async def state(self) -> NetworkState:
        """What is there now, by looking. Empty if there is no network."""
        if not namespaces.exists(self._plan.netns):
            return NetworkState((), {}, ())
        with _translated("The VM network cannot be looked at"):
            inside = await self._place()
            return await inside.run(self._look)

    async def inspect(self, running: Mapping[str, int]) -> list[Finding]:
        """Compare what is with what should be, and say what to do about what differs.

        `running` names the machines that have a VMM, and the uid of each. Changes nothing.
        """
        if not namespaces.exists(self._plan.netns):
            return [drift_check.no_namespace(self._plan)]
        with _translated("The VM network cannot be looked at"):
            inside = await self._place()
            found = await inside.run(self._inspect_inside, running)
            if self._uplink is not None:
                outside = _Place(self._plan.uplink_netns)
                try:
                    found += await outside.run(drift_check.outside, self._plan)
                finally:
                    await outside.close()
            return found

    async def remove(self) -> None:
        """Take everything away, the namespace included, and put back what the uplink changed."""
        async with self._ensuring:
            with _translated("The VM network cannot be removed"):
                await self.close()
                if self._uplink is not None:
                    await self._remove_uplink(self._uplink)
                await asyncio.to_thread(namespaces.remove, self._plan.netns)
                self._pool.load()
                self._pool.forget_if_empty()

    async def close(self) -> None:
        """Let go of the network without changing it."""
        if self._inside is not None:
            await self._inside.close()
            self._inside = None

    async def _place(self) -> _Place:
        """The thread in the VM namespace: a new one if that namespace was made anew."""
        if self._inside is not None and not self._inside.is_current:
            await self.close()
        if self._inside is None:
            if not namespaces.exists(self._plan.netns):
                raise NetworkFailed(
                    f"There is no network namespace {self._plan.netns}",
                    hint="Restart the host agent: it puts the network together",
                )
            self._pool.load()
            self._inside = _Place(self._plan.netns)
        return self._inside

    async def _set_up_uplink(self, inside: _Place, uplink: Uplink) -> None:
        outside = _Place(self._plan.uplink_netns)
        try:
            if not await inside.run(lambda links: links.index_of(UPLINK) is not None):
                await outside.run(uplink.clear_stale)
            await inside.run(uplink.join)
            await outside.run(uplink.set_up_outer)
            await inside.run(uplink.route)
        finally:
            await outside.close()

    async def _remove_uplink(self, uplink: Uplink) -> None:
        name = self._plan.uplink_netns
        if name is not None and not namespaces.exists(name):
            return
        outside = _Place(name)
        try:
            await outside.run(uplink.remove)
        finally:
            await outside.close()

    def _set_up_inside(self, links: Links) -> None:
        links.set_up_bridge(self._plan)
        senders = self._senders(links)
        firewall.load(firewall.vm_rules(self._plan, senders))
        for sender in senders:
            links.plug(sender.tap, sender.mac, IPv4Address(sender.address))

    def _attach(self, links: Links, vm_id: str, uid: int) -> Attachment:
        is_new = vm_id not in self._pool.leases()
        address = self._pool.take(vm_id)
        sender = self._sender(address)
        try:
            firewall.load(firewall.with_sender(sender))
            links.add_tap(sender.tap, sender.mac, address, uid)
        except BaseException:
            if is_new:
                self._detach(links, [vm_id])
            raise
        return Attachment(
            tap=sender.tap,
            mac=sender.mac,
            address=str(address),
            prefix=self._plan.subnet.prefixlen,
            channel_port=self._plan.channel_port_base + self._plan.index_of(address),
            channel_mac=mac_of(address, role=2),
        )

    def _detach(self, links: Links, vm_ids: Collection[str]) -> None:
        leases = self._pool.leases()
        for address in (leases[vm_id] for vm_id in vm_ids if vm_id in leases):
            sender = self._sender(address)
            links.remove_tap(sender.tap, address)
            firewall.load(firewall.without_sender(sender))
            links.end_connections(sender.mark)
        self._pool.release(*vm_ids)

    def _sweep(self, links: Links, keep: frozenset[str] | None) -> list[str]:
        if keep is not None:
            self._detach(links, self._pool.leases().keys() - keep)
        leased = {self._plan.tap_of(address) for address in self._pool.leases().values()}
        strays = [tap for tap in links.taps() if tap not in leased]
        for tap in strays:
            _log.warning("removing TAP %s, which belongs to no machine", tap)
            links.remove(tap)
        if {element["tap"] for element in _elements()} - leased:
            firewall.load(firewall.vm_rules(self._plan, self._senders(links)))
        return strays

    def _look(self, links: Links) -> NetworkState:
        return NetworkState(
            taps=tuple(links.taps()),
            addresses={vm_id: str(address) for vm_id, address in self._pool.leases().items()},
            firewall=tuple(sorted(element["tap"] for element in _elements())),
        )

    def _inspect_inside(self, links: Links, running: Mapping[str, int]) -> list[Finding]:
        leases = self._pool.leases()
        ports = [
            drift_check.Port(vm_id, running.get(vm_id), address, self._sender(address))
            for vm_id, address in leases.items()
        ]
        return drift_check.inside(links, self._plan, ports)

    def _senders(self, links: Links) -> list[Sender]:
        """One for each lease whose TAP is there: what the rules must name after a reload."""
        taps = set(links.taps())
        senders = (self._sender(address) for address in self._pool.leases().values())
        return [sender for sender in senders if sender.tap in taps]

    def _sender(self, address: IPv4Address) -> Sender:
        return Sender(self._plan.tap_of(address), mac_of(address, role=1), str(address))


class _Place:
    """A thread in a namespace together with a view of that namespace's devices."""

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


class _translated:  # noqa: N801 - reads as a clause
    """Turn the kernel's errors into ours; our own pass."""

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
    """The anti-spoofing set's elements, as the kernel tells them."""
    text = firewall.senders_text()
    if not text:
        return []
    sets = [entry["set"] for entry in json.loads(text)["nftables"] if "set" in entry]
    found = (element["concat"] for entry in sets for element in entry.get("elem", []))
    return [{"tap": tap, "mac": mac, "address": address} for tap, mac, address in found]
