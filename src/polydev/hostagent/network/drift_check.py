"""Compares the VM network with what it should be, for `doctor`: devices, addresses, rules, uplink.

`Network.inspect` calls it in the threads of the two namespaces. It changes nothing. Rules are
compared as the kernel tells them: what Polydev would load is loaded into an empty namespace, and
both listings must be the same. So a table that another program flushed or added to is found,
whatever it did to it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address

from polydev.hostagent.network import firewall, nft_diff
from polydev.hostagent.network.bridge import PORT_FLAGS, Device, Links, read_sysctl
from polydev.hostagent.network.firewall import TABLE, Sender
from polydev.hostagent.network.network_config import BRIDGE, UPLINK, NetworkPlan
from polydev.hostagent.system import namespaces
from polydev.shared.domain import Finding
from polydev.shared.errors import NetworkFailed

_MEND = "Restart Polydev, which mends it: `polydev down`, then `polydev up`; machines go on"


@dataclass(frozen=True, slots=True)
class Port:
    """A machine's place in the network, as its lease says."""

    vm_id: str
    uid: int | None
    """Whom its VMM runs as; None: it does not run, and needs no TAP."""
    address: IPv4Address
    sender: Sender


def no_namespace(plan: NetworkPlan) -> Finding:
    return Finding(
        "namespace",
        False,
        f"The network namespace {plan.netns} is gone: no machine can start, none has a network",
        _MEND + ", but machines that ran in the old one must be stopped and started",
    )


def inside(links: Links, plan: NetworkPlan, ports: Sequence[Port]) -> list[Finding]:
    """What there is to say of the VM namespace. In its thread."""
    devices = links.devices()
    wrong = [
        *_bridge(links, plan, devices),
        *(it for port in ports for it in _tap(links, port, devices)),
        *_orphans(links, plan, ports),
        *_rules(plan, ports, devices),
        *_way_out(links, plan, devices),
    ]
    return [*wrong, *_well(plan, ports, {it.name for it in wrong})]


def outside(links: Links, plan: NetworkPlan) -> list[Finding]:
    """What there is to say of the uplink's outer side. In the outer namespace's thread."""
    device = links.devices().get(plan.outer_uplink)
    where = plan.uplink_netns or "the host"
    wrong = []
    if device is None:
        wrong.append(f"{plan.outer_uplink} is missing in {where}")
    else:
        wrong += _device_faults(
            links, device, f"{plan.uplink_outer_address}/{plan.uplink_network.prefixlen}"
        )
    if read_sysctl("net/ipv4/ip_forward") != "1":
        wrong.append(f"forwarding (net.ipv4.ip_forward) was switched off in {where}")
    expected = _as_loaded(firewall.outer_rules(plan))
    found = nft_diff.parsed(firewall.listing("inet", plan.outer_table))
    wrong += [f"in {where}, {fault}" for fault in nft_diff.differences(expected, found)]
    if wrong:
        return [_wrong("uplink", f"Machines do not get outside: {'; '.join(wrong)}")]
    return [Finding("uplink", True, f"{plan.outer_uplink} leads outside, with its NAT")]


def _bridge(links: Links, plan: NetworkPlan, devices: dict[str, Device]) -> Iterator[Finding]:
    device = devices.get(BRIDGE)
    faults = []
    if device is None:
        faults.append("is missing")
    else:
        faults += _device_faults(links, device, f"{plan.gateway}/{plan.subnet.prefixlen}")
        if device.mac != plan.bridge_mac:
            faults.append(f"has the MAC {device.mac} instead of {plan.bridge_mac}")
    if read_sysctl("net/ipv4/ip_forward") != "1":
        faults.append("does not forward (net.ipv4.ip_forward is off in the namespace)")
    if faults:
        yield _wrong("bridge", f"{BRIDGE} in {plan.netns} {' and '.join(faults)}")


def _device_faults(links: Links, device: Device, address: str) -> Iterator[str]:
    if not device.is_up:
        yield f"{device.name} is down" if device.name != BRIDGE else "is down"
    if (found := links.addresses_of(device.name)) != [address]:
        yield f"has {', '.join(found) or 'no address'} instead of {address}"


def _tap(links: Links, port: Port, devices: dict[str, Device]) -> Iterator[Finding]:
    sender = port.sender
    device = devices.get(sender.tap)
    if device is None:
        if port.uid is not None:
            yield Finding(
                "TAPs",
                False,
                f"Machine {port.vm_id} runs without a network: its TAP {sender.tap} is gone",
                f"Stop and start it: polydev machine stop {port.vm_id}, then polydev machine "
                f"start {port.vm_id}",
                port.vm_id,
            )
        return
    faults = []
    if device.master != BRIDGE:
        faults.append(f"is not in {BRIDGE}")
    if not device.is_up:
        faults.append("is down")
    if BRIDGE in devices and not links.points_to(sender.tap, sender.mac, port.address):
        faults.append(f"is not pinned to {sender.mac} and {port.address}")
    faults += [
        f"has {flag} {device.port_flags[flag]} instead of {wanted}"
        for flag, wanted in PORT_FLAGS.items()
        if device.master == BRIDGE and device.port_flags.get(flag) != wanted
    ]
    if port.uid is not None and device.owner != port.uid:
        faults.append(f"is user {device.owner}'s instead of {port.uid}'s")
    if faults:
        message = f"TAP {sender.tap} of machine {port.vm_id} {' and '.join(faults)}"
        yield Finding("TAPs", False, message, _MEND, port.vm_id)


def _orphans(links: Links, plan: NetworkPlan, ports: Sequence[Port]) -> Iterator[Finding]:
    leased = {port.sender.tap for port in ports}
    for tap in sorted(set(links.taps()) - leased):
        yield _wrong("orphans", f"TAP {tap} in {plan.netns} belongs to no machine")


def _rules(
    plan: NetworkPlan, ports: Sequence[Port], devices: dict[str, Device]
) -> Iterator[Finding]:
    senders = [port.sender for port in ports if port.sender.tap in devices]
    expected = _as_loaded(firewall.vm_rules(plan, senders))
    found = nft_diff.parsed(firewall.listing())
    ours = {name: table for name, table in found.items() if name[1] == TABLE}
    faults = [*nft_diff.differences(expected, ours), *_strangers(found, ours)]
    if faults:
        yield _wrong("firewall", f"In {plan.netns}, {'; '.join(faults)}")


def _strangers(found: nft_diff.Tables, ours: nft_diff.Tables) -> Iterable[str]:
    """Nobody else has business in our namespace; what has no hook does nothing."""
    return [
        f"another program has put table {' '.join(name)}"
        for name, table in found.items()
        if name not in ours and table.has_hooks
    ]


def _way_out(links: Links, plan: NetworkPlan, devices: dict[str, Device]) -> Iterator[Finding]:
    if not plan.has_uplink:
        return
    device = devices.get(UPLINK)
    faults = []
    if device is None:
        faults.append(f"{UPLINK} is missing")
    else:
        address = f"{plan.uplink_inner_address}/{plan.uplink_network.prefixlen}"
        faults += _device_faults(links, device, address)
        if links.default_gateway() != str(plan.uplink_outer_address):
            faults.append("there is no route to the outside")
    if faults:
        yield _wrong("uplink", f"Machines do not get outside: in {plan.netns}, {'; '.join(faults)}")


def _as_loaded(rules: str) -> nft_diff.Tables:
    """What the kernel makes of rules."""

    def load() -> str:
        firewall.load(rules)
        return firewall.listing()

    found = namespaces.in_scratch(load)
    if not found:
        raise NetworkFailed("The rules of the VM network cannot be listed")
    return nft_diff.parsed(found)


def _well(plan: NetworkPlan, ports: Sequence[Port], wrong: set[str]) -> Iterator[Finding]:
    words = {
        "namespace": f"{plan.netns} is there",
        "bridge": f"{BRIDGE} is up and has {plan.gateway}/{plan.subnet.prefixlen}",
        "TAPs": f"{len(ports)}, each pinned to its machine's MAC and address",
        "firewall": f"As Polydev made it, for {len(ports)} machines",
    }
    for name, message in words.items():
        if name not in wrong:
            yield Finding(name, True, message)


def _wrong(name: str, message: str) -> Finding:
    return Finding(name, False, message, _MEND)
