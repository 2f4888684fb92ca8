"""Address leases: ascending, persistent and unique."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from polydev.hostagent.network import NetworkConfig
from polydev.hostagent.network.addresses import AddressPool
from polydev.hostagent.settings import HostSettings
from polydev.shared.errors import NetworkFailed, NoCapacity


def plan_in(folder: Path) -> NetworkConfig:
    return NetworkConfig.from_settings(HostSettings(state_dir=folder))


@pytest.fixture
def plan(tmp_path: Path) -> NetworkConfig:
    return plan_in(tmp_path)


def reopened(plan: NetworkConfig) -> AddressPool:
    pool = AddressPool(plan)
    pool.load()
    return pool


def test_addresses_ascend_from_the_first(plan: NetworkConfig) -> None:
    pool = AddressPool(plan)
    assert [str(pool.lease(vm)) for vm in "abc"] == [
        "192.168.100.5",
        "192.168.100.6",
        "192.168.100.7",
    ]


def test_address_survives_a_restart(plan: NetworkConfig) -> None:
    address = AddressPool(plan).lease("a")
    assert reopened(plan).lease("a") == address
    assert reopened(plan).lease("b") != address


def test_released_address_is_reused_last(plan: NetworkConfig) -> None:
    small = replace(plan, subnet=IPv4Network("192.168.100.0/29"))
    pool = AddressPool(small)
    first = pool.lease("a")
    pool.release("a", "never-there")
    again = reopened(small)
    assert again.lease("b") != first
    assert again.lease("c") == first
    with pytest.raises(NoCapacity):
        again.lease("d")


def test_gateway_and_broadcast_are_never_leased(plan: NetworkConfig) -> None:
    small = replace(
        plan,
        subnet=IPv4Network("10.9.9.0/29"),
        gateway=IPv4Address("10.9.9.3"),
        first_address=IPv4Address("10.9.9.1"),
    )
    pool = AddressPool(small)
    assert [int(pool.lease(vm)) & 7 for vm in "abcde"] == [1, 2, 4, 5, 6]


def test_no_address_without_a_channel_port(plan: NetworkConfig) -> None:
    pool = AddressPool(replace(plan, channel_port_base=65530))
    assert str(pool.lease("a")) == "192.168.100.5"
    with pytest.raises(NoCapacity):
        pool.lease("b")


def test_leases_of_another_network_are_dropped(plan: NetworkConfig) -> None:
    AddressPool(plan).lease("a")
    moved = replace(plan, subnet=IPv4Network("10.9.9.0/24"), first_address=IPv4Address("10.9.9.5"))
    pool = reopened(moved)
    assert pool.leases() == {}
    assert str(pool.lease("a")) == "10.9.9.5"


@pytest.mark.parametrize("text", ["", "{", "[]", '{"leases": {"a": "x"}, "next": "y"}', "{}"])
def test_damaged_file_is_an_error_with_a_hint(plan: NetworkConfig, text: str) -> None:
    plan.state_dir.mkdir()
    (plan.state_dir / "leases.json").write_text(text)
    with pytest.raises(NetworkFailed) as raised:
        reopened(plan)
    assert "leases.json" in raised.value.line()


def test_unstored_lease_is_not_granted(
    plan: NetworkConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    pool = AddressPool(plan)
    with monkeypatch.context() as broken:
        broken.setattr("polydev.hostagent.network.addresses.write_whole", full)
        with pytest.raises(OSError, match="No space"):
            pool.lease("a")
    assert pool.leases() == {}
    assert str(pool.lease("b")) == "192.168.100.5"


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.sampled_from("abcdefgh"), st.booleans()), max_size=40))
def test_addresses_are_unique(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[str, bool]]
) -> None:
    plan = replace(plan_in(tmp_path_factory.mktemp("pool")), subnet=IPv4Network("192.168.100.0/28"))
    for vm_id, takes in steps:
        pool = reopened(plan)
        if takes:
            pool.lease(vm_id)
        else:
            pool.release(vm_id)
        held = list(pool.leases().values())
        assert len(held) == len(set(held))
        assert reopened(plan).leases() == pool.leases()
