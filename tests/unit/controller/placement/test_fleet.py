"""Hosts are chosen by free capacity, which is never exceeded."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from polydev.controller.placement import Fleet
from polydev.controller.placement.fleet import MIN_DISK_FREE_MIB
from polydev.shared.domain import HostId, HostState, MachineSize, Resources, VmHost

NOW = datetime(2026, 1, 1, tzinfo=UTC)
UNSEEN_LIMIT_S = 20.0
RESOURCES = st.builds(Resources, st.integers(1, 4096), st.integers(1, 4), st.just(1))


def host(name: str, memory_mib: int = 4096, **more: object) -> VmHost:
    """A host that accepts machines, unless `more` changes that."""
    values: dict[str, object] = {
        "host_id": HostId(name),
        "socket": f"/run/{name}.sock",
        "state": HostState.ACTIVE,
        "memory_mib": memory_mib,
        "vcpus": 8,
        "max_machines": 10,
        "disk_free_mib": 100_000,
        "driver": "simulated",
        "accelerator": "none",
        "version": "1",
        "seen_at": NOW,
        "created_at": NOW,
    }
    return VmHost(**{**values, **more})  # type: ignore[arg-type]


def fleet(*hosts: VmHost, taken: dict[str, Resources] | None = None) -> Fleet:
    by_host = {HostId(name): needs for name, needs in (taken or {}).items()}
    return Fleet.from_rows(hosts, by_host, NOW, UNSEEN_LIMIT_S)


ONE = Resources(1024, 1, 1)


def test_host_with_the_most_free_memory_is_chosen() -> None:
    hosts = fleet(host("a"), host("b", 8192), taken={"b": Resources(5000, 1, 1)})
    assert hosts.choose(ONE) == "a"


def test_first_of_equal_hosts_by_name_is_chosen() -> None:
    assert fleet(host("b"), host("a")).choose(ONE) == "a"


def test_preferred_host_is_chosen_if_it_has_capacity() -> None:
    hosts = fleet(host("a", 8192), host("b"))
    assert hosts.choose(ONE, prefer=HostId("b")) == "b"
    assert hosts.choose(Resources(5000, 1, 1), prefer=HostId("b")) == "a"


def test_draining_unseen_and_full_hosts_are_not_chosen() -> None:
    late = NOW - timedelta(seconds=UNSEEN_LIMIT_S + 1)
    hosts = fleet(
        host("draining", state=HostState.DRAINING),
        host("unseen", seen_at=late),
        host("never-seen", seen_at=None),
        host("full", disk_free_mib=MIN_DISK_FREE_MIB - 1),
    )
    assert hosts.choose(ONE) is None
    message = hosts.no_capacity(ONE).message
    for name in ("draining is draining", "unseen does not answer", "full has"):
        assert name in message


def test_restarted_machine_needs_no_address_and_no_disk() -> None:
    size = MachineSize(1024, 1, 4096)
    hosts = fleet(host("a", max_machines=1, disk_free_mib=0), taken={"a": Resources(0, 0, 1)})
    assert not hosts.fits(HostId("a"), Resources.for_machine(size))
    assert hosts.fits(HostId("a"), Resources.for_machine(size, new=False))


def test_machine_larger_than_any_host_never_fits() -> None:
    hosts = fleet(host("a"), host("b", 2048))
    assert not hosts.can_ever_fit(Resources(5000, 1, 1))
    assert "the largest host has 4096 MiB" in hosts.no_capacity(Resources(5000, 1, 1)).message
    assert hosts.can_ever_fit(Resources(4096, 8, 1))


def test_before_any_host_answers_anything_may_fit() -> None:
    assert fleet(host("a", 0, seen_at=None)).can_ever_fit(ONE)


def test_two_machines_share_a_host_if_possible() -> None:
    cli, browser = Resources(1024, 1, 1), Resources(2048, 2, 1)
    assert fleet(host("a", 3072), host("b", 2900)).choose_two(cli, browser) == ("a", "a")
    assert fleet(host("a", 1100), host("b", 2048)).choose_two(cli, browser) == ("a", "b")
    assert fleet(host("a", 1100), host("b", 1100)).choose_two(cli, browser) is None


@given(
    st.lists(st.tuples(st.integers(0, 16384), st.integers(0, 16), st.integers(0, 8)), max_size=5),
    st.lists(RESOURCES, max_size=40),
)
def test_no_host_exceeds_its_capacity(
    capacities: list[tuple[int, int, int]], wanted: list[Resources]
) -> None:
    hosts = fleet(
        *(
            host(f"h{number}", memory_mib, vcpus=vcpus, max_machines=machines)
            for number, (memory_mib, vcpus, machines) in enumerate(capacities)
        )
    )
    for needs in wanted:
        host_id = hosts.choose(needs)
        if host_id is None:
            assert not any(hosts.free(it).covers(needs) for it in hosts.hosts)
        else:
            hosts.reserve(host_id, needs)
    for host_id in hosts.hosts:
        assert hosts.free(host_id).covers(Resources())
