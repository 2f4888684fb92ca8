"""Drift check of the VM network for `doctor`: devices, addresses, rules, uplink.

`Network.inspect` calls it in the threads of both namespaces. It changes nothing. Polydev's rules
are loaded into an empty namespace, and the kernel's listings of both are compared, so that any
change by another program is found.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address

from polydev.hostagent.network import firewall, nft_diff
from polydev.hostagent.network.bridge import PORT_FLAGS, Device, Links, read_sysctl
from polydev.hostagent.network.firewall import TABLE, Sender
from polydev.hostagent.network.network_config import BRIDGE, UPLINK, NetworkConfig
from polydev.hostagent.system import namespaces
from polydev.shared.domain import Finding
from polydev.shared.errors import NetworkFailed

_RESTART = "Restart Polydev to repair it: `polydev down`, then `polydev up`; machines keep running"
_SHOWN = 5
"""Differences that a finding lists."""


@dataclass(frozen=True, slots=True)
class MachinePort:
    """A machine's port in the network, according to its lease."""

    vm_id: str
    uid: int | None
    """The VMM's user; None if it does not run and needs no TAP."""
    address: IPv4Address
    sender: Sender


def missing_namespace(config: NetworkConfig) -> Finding:
    return Finding(
        "namespace",
        False,
        f"The network namespace {config.netns} is gone: machines cannot start or communicate",
        _RESTART + ", but machines of the old namespace must be stopped and started",
    )


def check_namespace(
    links: Links, config: NetworkConfig, ports: Sequence[MachinePort]
) -> list[Finding]:
    """Check the VM namespace. Runs in its thread."""
    devices = links.devices()
    failed = [
        *_bridge(links, config, devices),
        *(it for port in ports for it in _tap(links, port, devices)),
        *_orphans(links, config, ports),
        *_rules(config, ports, devices),
        *_uplink(links, config, devices),
    ]
    return [*failed, *_passed(config, ports, {it.name for it in failed})]


def check_uplink(links: Links, config: NetworkConfig) -> list[Finding]:
    """Check the uplink's outer end. Runs in the outer namespace's thread."""
    device = links.devices().get(config.outer_uplink)
    where = config.uplink_netns or "the host"
    failed = []
    if device is None:
        failed.append(f"{config.outer_uplink} is missing in {where}")
    else:
        failed += _device_faults(
            links, device, f"{config.uplink_outer_address}/{config.uplink_network.prefixlen}"
        )
    if read_sysctl("net/ipv4/ip_forward") != "1":
        failed.append(f"forwarding (net.ipv4.ip_forward) was switched off in {where}")
    expected = _kernel_listing(firewall.outer_rules(config))
    found = nft_diff.parse(firewall.list_rules("inet", config.outer_table))
    failed += [f"in {where}, {fault}" for fault in nft_diff.differences(expected, found)]
    if failed:
        return [_failed("uplink", f"Machines have no outside access: {_summary(failed)}")]
    return [Finding("uplink", True, f"{config.outer_uplink} is up, with NAT")]


def _bridge(links: Links, config: NetworkConfig, devices: dict[str, Device]) -> Iterator[Finding]:
    device = devices.get(BRIDGE)
    faults = []
    if device is None:
        faults.append("is missing")
    else:
        faults += _device_faults(links, device, f"{config.gateway}/{config.subnet.prefixlen}")
        if device.mac != config.bridge_mac:
            faults.append(f"has the MAC {device.mac} instead of {config.bridge_mac}")
    if read_sysctl("net/ipv4/ip_forward") != "1":
        faults.append("does not forward (net.ipv4.ip_forward is off in the namespace)")
    if faults:
        yield _failed("bridge", f"{BRIDGE} in {config.netns} {' and '.join(faults)}")


def _device_faults(links: Links, device: Device, address: str) -> Iterator[str]:
    if not device.is_up:
        yield f"{device.name} is down" if device.name != BRIDGE else "is down"
    if (found := links.addresses_of(device.name)) != [address]:
        yield f"has {', '.join(found) or 'no address'} instead of {address}"


def _tap(links: Links, port: MachinePort, devices: dict[str, Device]) -> Iterator[Finding]:
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
    if BRIDGE in devices and not links.is_pinned(sender.tap, sender.mac, port.address):
        faults.append(f"is not pinned to {sender.mac} and {port.address}")
    faults += [
        f"has {flag} {device.port_flags[flag]} instead of {wanted}"
        for flag, wanted in PORT_FLAGS.items()
        if device.master == BRIDGE and device.port_flags.get(flag) != wanted
    ]
    if port.uid is not None and device.owner != port.uid:
        faults.append(f"belongs to user {device.owner} instead of {port.uid}")
    if faults:
        message = f"TAP {sender.tap} of machine {port.vm_id} {' and '.join(faults)}"
        yield Finding("TAPs", False, message, _RESTART, port.vm_id)


def _orphans(
    links: Links, config: NetworkConfig, ports: Sequence[MachinePort]
) -> Iterator[Finding]:
    leased = {port.sender.tap for port in ports}
    for tap in sorted(set(links.taps()) - leased):
        yield _failed("orphans", f"TAP {tap} in {config.netns} belongs to no machine")


def _rules(
    config: NetworkConfig, ports: Sequence[MachinePort], devices: dict[str, Device]
) -> Iterator[Finding]:
    senders = [port.sender for port in ports if port.sender.tap in devices]
    expected = _kernel_listing(firewall.vm_rules(config, senders))
    found = nft_diff.parse(firewall.list_rules())
    ours = {name: table for name, table in found.items() if name[1] == TABLE}
    faults = [*nft_diff.differences(expected, ours), *_foreign_tables(found, ours)]
    if faults:
        yield _failed("firewall", f"In {config.netns}, {_summary(faults)}")


def _foreign_tables(found: nft_diff.Tables, ours: nft_diff.Tables) -> Iterable[str]:
    """Report tables of other programs; those without hooks do nothing."""
    return [
        f"another program added table {' '.join(name)}"
        for name, table in found.items()
        if name not in ours and table.has_hooks
    ]


def _uplink(links: Links, config: NetworkConfig, devices: dict[str, Device]) -> Iterator[Finding]:
    if not config.has_uplink:
        return
    device = devices.get(UPLINK)
    faults = []
    if device is None:
        faults.append(f"{UPLINK} is missing")
    else:
        address = f"{config.uplink_inner_address}/{config.uplink_network.prefixlen}"
        faults += _device_faults(links, device, address)
        if links.default_gateway() != str(config.uplink_outer_address):
            faults.append("there is no route to the outside")
    if faults:
        yield _failed(
            "uplink", f"Machines have no outside access: in {config.netns}, {'; '.join(faults)}"
        )


def _kernel_listing(rules: str) -> nft_diff.Tables:
    """Load rules into a scratch namespace and return the kernel's listing."""

    def load() -> str:
        firewall.load(rules)
        return firewall.list_rules()

    found = namespaces.in_scratch(load)
    if not found:
        raise NetworkFailed("nft cannot list the rules of the VM network")
    return nft_diff.parse(found)


def _passed(
    config: NetworkConfig, ports: Sequence[MachinePort], failed: set[str]
) -> Iterator[Finding]:
    messages = {
        "namespace": f"{config.netns} exists",
        "bridge": f"{BRIDGE} is up and has {config.gateway}/{config.subnet.prefixlen}",
        "TAPs": f"{len(ports)}, each pinned to its machine's MAC and address",
        "firewall": f"As Polydev set it up, for {len(ports)} machines",
    }
    for name, message in messages.items():
        if name not in failed:
            yield Finding(name, True, message)


def _failed(name: str, message: str) -> Finding:
    return Finding(name, False, message, _RESTART)


def _summary(faults: Sequence[str]) -> str:
    shown, more = faults[:_SHOWN], len(faults) - _SHOWN
    return "; ".join([*shown, f"and {more} more"] if more > 0 else shown)
