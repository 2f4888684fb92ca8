"""Delivery of a sealed credential into a machine, and its undo."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from agent_process import agent_world
from pydantic import SecretStr

from polydev.controller.store.engine.database import open_database
from polydev.controller.store.queries.accounts import users
from polydev.controller.store.queries.connect import credentials
from polydev.controller.vault import Binding, Vault
from polydev.controller.workflows.credentials.credential_delivery import Delivery
from polydev.shared.domain import (
    CredentialId,
    GuestFile,
    MachineKind,
    User,
    UserId,
    VmId,
    new_vm_id,
    now,
)
from polydev.shared.errors import (
    CredentialDamaged,
    CredentialsNotAccepted,
    NoSuchFile,
    NotConnected,
)
from polydev.shared.host_client import HostClient
from polydev.shared.host_protocol import CreateMachine, WireFile, WriteFiles
from polydev.shared.providers import provider

ANN, CREDENTIAL = UserId("ann"), CredentialId("c-1")
CODEX = provider("codex")
WHERE = CODEX.credentials.path


@dataclass
class Delivered:
    """A machine with its delivery."""

    delivery: Delivery
    host: HostClient
    vm_id: VmId

    async def write(self, content: bytes) -> None:
        files = [WireFile.of(GuestFile(WHERE, content))]
        await self.host.run("before", WriteFiles(vm_id=self.vm_id, files=files), 30)

    async def read(self, path: str = WHERE) -> bytes | None:
        try:
            return await self.host.read_file(self.vm_id, path)
        except NoSuchFile:
            return None


@pytest.fixture
async def machine(tmp_path: Path) -> AsyncIterator[Delivered]:
    database = open_database(None, tmp_path)
    await database.upgrade()
    vault = Vault(SecretStr("a key of the tests"), "key-1")
    row = await vault.seal(b"new", Binding(CREDENTIAL, ANN, "codex"), now())
    async with database.write() as connection:
        await users.insert(connection, User(ANN, "ann@example.test", now()))
        await credentials.upsert(connection, row)
    async with agent_world(POLYDEV_DRIVER="simulated") as agent:
        await agent.start()
        vm_id = new_vm_id()
        size = {"memory_mib": 512, "vcpus": 1, "disk_mib": 256}
        async with agent.host() as host:
            asked = CreateMachine(vm_id=vm_id, machine_kind=MachineKind.CLI, **size)
            await host.run("make", asked, 60)
            yield Delivered(Delivery(database, vault, host), host, vm_id)
    await database.close()


async def test_sealed_credential_is_delivered_and_settled(machine: Delivered) -> None:
    await machine.delivery.deliver(CREDENTIAL, CODEX, machine.vm_id)
    assert await machine.read() == b"new"
    await machine.delivery.settle(CODEX, machine.vm_id)
    assert await machine.read(f"{WHERE}.before-connect") is None
    await machine.delivery.revert(CODEX, machine.vm_id)
    assert await machine.read() == b"new"


@pytest.mark.parametrize("before", [None, b"old"])
async def test_undo_restores_the_previous_file_however_often_it_runs(
    machine: Delivered, before: bytes | None
) -> None:
    if before is not None:
        await machine.write(before)
    for _ in range(2):
        await machine.delivery.deliver(CREDENTIAL, CODEX, machine.vm_id)
        assert await machine.read() == b"new"
    for _ in range(2):
        await machine.delivery.revert(CODEX, machine.vm_id)
        assert await machine.read() == before
    assert await machine.read(f"{WHERE}.before-connect") is None


async def test_undo_before_delivery_changes_nothing(machine: Delivered) -> None:
    await machine.write(b"old")
    await machine.delivery.revert(CODEX, machine.vm_id)
    assert await machine.read() == b"old"
    await machine.delivery.revert(CODEX, new_vm_id())


async def test_rejection_by_the_cli_is_reported(machine: Delivered) -> None:
    doubting = replace(CODEX, status_argv=("nothing", "of", "that", "name"))
    with pytest.raises(CredentialsNotAccepted, match="Codex") as caught:
        await machine.delivery.deliver(CREDENTIAL, doubting, machine.vm_id)
    assert str(machine.vm_id) in caught.value.line()


async def test_missing_or_changed_credential_is_not_delivered(machine: Delivered) -> None:
    with pytest.raises(NotConnected):
        await machine.delivery.deliver(CredentialId("none"), CODEX, machine.vm_id)
    async with machine.delivery.database.write() as connection:
        row = await credentials.find_sealed(connection, CREDENTIAL)
        assert row is not None
        await credentials.upsert(connection, replace(row, provider="claude_code"))
    with pytest.raises(CredentialDamaged):
        await machine.delivery.deliver(CREDENTIAL, CODEX, machine.vm_id)
    assert await machine.read() is None
