"""Fixtures for a real VM network between namespaces of the test."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from wire import UID, Attach, FakeMachine, Surroundings, create_surroundings

from polydev.hostagent.network import Network, NetworkConfig
from polydev.hostagent.settings import HostSettings


@pytest.fixture
def surroundings() -> Iterator[Surroundings]:
    with create_surroundings() as it:
        yield it


@pytest.fixture
def plan(surroundings: Surroundings, tmp_path: Path) -> NetworkConfig:
    settings = HostSettings(
        netns=surroundings.vm, uplink_netns=surroundings.outer, state_dir=tmp_path
    )
    return NetworkConfig.from_settings(settings)


@pytest.fixture
async def network(plan: NetworkConfig) -> AsyncIterator[Network]:
    it = Network(plan)
    await it.ensure()
    yield it
    await it.remove()


@pytest.fixture
async def attach(network: Network, surroundings: Surroundings) -> AsyncIterator[Attach]:
    machines: list[FakeMachine] = []

    async def attached(vm_id: str) -> FakeMachine:
        machine = FakeMachine(surroundings.vm, await network.attach(vm_id, UID))
        machines.append(machine)
        machine.settle()
        return machine

    yield attached
    for machine in machines:
        machine.close()
