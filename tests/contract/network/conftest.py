"""Fixtures for a real VM network between namespaces of the test."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from wire import UID, Attach, FakeMachine, Surroundings, surroundings

from polydev.hostagent.network import Network, NetworkConfig
from polydev.hostagent.settings import HostSettings


@pytest.fixture
def here() -> Iterator[Surroundings]:
    with surroundings() as it:
        yield it


@pytest.fixture
def plan(here: Surroundings, tmp_path: Path) -> NetworkConfig:
    settings = HostSettings(netns=here.vm, uplink_netns=here.outer, state_dir=tmp_path)
    return NetworkConfig.from_settings(settings)


@pytest.fixture
async def network(plan: NetworkConfig) -> AsyncIterator[Network]:
    it = Network(plan)
    await it.ensure()
    yield it
    await it.remove()


@pytest.fixture
async def attach(network: Network, here: Surroundings) -> AsyncIterator[Attach]:
    machines: list[FakeMachine] = []

    async def attached(vm_id: str) -> FakeMachine:
        machine = FakeMachine(here.vm, await network.attach(vm_id, UID))
        machines.append(machine)
        machine.settle()
        return machine

    yield attached
    for machine in machines:
        machine.close()
