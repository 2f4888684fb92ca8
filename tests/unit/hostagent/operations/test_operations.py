"""Operations by id are not repeated, even after the agent is killed."""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path

import pytest
from pydantic import SecretStr

from polydev.hostagent.operations.journal import OperationJournal
from polydev.hostagent.operations.operations import Operations
from polydev.shared.domain import MachineKind, new_vm_id
from polydev.shared.errors import HostUnreachable, NoCapacity, NoSuchOperation, OperationMismatch
from polydev.shared.host_protocol import (
    CreateMachine,
    DestroyMachine,
    Operation,
    WireFile,
    WriteFiles,
)

SECRET = "sk-made-up-secret-0123456789"


class Work:
    """Counts performed operations; each runs until it is released."""

    def __init__(self) -> None:
        self.performed: list[str] = []
        self.go_on = asyncio.Event()
        self.error: Exception | None = None

    async def __call__(self, operation: Operation) -> None:
        self.performed.append(operation.vm_id)
        await self.go_on.wait()
        if self.error:
            raise self.error


async def opened(folder: Path, work: Work, **limits: float) -> Operations:
    operations = Operations(OperationJournal(folder, **limits), work)  # type: ignore[arg-type]
    await operations.open()
    return operations


def destroy() -> DestroyMachine:
    return DestroyMachine(vm_id=new_vm_id())


async def test_concurrent_requests_perform_once(tmp_path: Path) -> None:
    work = Work()
    operations = await opened(tmp_path, work)
    asked = destroy()
    first = asyncio.create_task(operations.submit("one", asked, 10))
    second = asyncio.create_task(operations.submit("one", asked, 10))
    await asyncio.sleep(0)
    work.go_on.set()
    assert (await first).state == (await second).state == "done"
    assert work.performed == [asked.vm_id]
    assert (await operations.submit("one", asked, 0)).state == "done"
    assert work.performed == [asked.vm_id]


async def test_long_operation_is_reported_as_running_and_can_be_joined(tmp_path: Path) -> None:
    work = Work()
    operations = await opened(tmp_path, work)
    asked = destroy()
    assert (await operations.submit("one", asked, 0)).state == "running"
    assert (await operations.wait("one", 0)).state == "running"
    work.go_on.set()
    assert (await operations.wait("one", 10)).state == "done"


async def test_operation_goes_on_if_its_client_disconnects(tmp_path: Path) -> None:
    work = Work()
    operations = await opened(tmp_path, work)
    asking = asyncio.create_task(operations.submit("one", destroy(), 10))
    await asyncio.sleep(0.01)
    asking.cancel()
    await asyncio.gather(asking, return_exceptions=True)
    work.go_on.set()
    assert (await operations.wait("one", 10)).state == "done"


async def test_id_with_another_body_is_refused(tmp_path: Path) -> None:
    work = Work()
    work.go_on.set()
    operations = await opened(tmp_path, work)
    await operations.submit("one", destroy(), 10)
    with pytest.raises(OperationMismatch):
        await operations.submit("one", destroy(), 10)


async def test_repeated_request_returns_the_failure(tmp_path: Path) -> None:
    work = Work()
    work.error = NoCapacity("No address is free", hint="Destroy machines")
    work.go_on.set()
    operations = await opened(tmp_path, work)
    asked = destroy()
    for _ in range(2):
        view = await operations.submit("one", asked, 10)
        assert view.state == "failed"
        assert view.error is not None
        assert (view.error.code, view.error.hint) == ("no-capacity", "Destroy machines")
    assert len(work.performed) == 1
    again = await opened(tmp_path, work)
    assert (await again.submit("one", asked, 10)).error == view.error
    assert len(work.performed) == 1


async def test_unexpected_error_is_reported_without_its_text(tmp_path: Path) -> None:
    work = Work()
    work.error = RuntimeError(SECRET)
    work.go_on.set()
    operations = await opened(tmp_path, work)
    view = await operations.submit("one", destroy(), 10)
    assert view.error is not None
    assert view.error.code == "failed"
    assert SECRET not in view.model_dump_json()


async def test_interrupted_operation_runs_again_on_request(tmp_path: Path) -> None:
    work = Work()
    operations = await opened(tmp_path, work)
    asked = destroy()
    await operations.submit("one", asked, 0.05)

    after_death = Work()
    after_death.go_on.set()
    again = await opened(tmp_path, after_death)
    view = await again.wait("one", 0)
    assert view.state == "failed"
    assert view.error is not None
    assert view.error.code == HostUnreachable.code
    with pytest.raises(OperationMismatch):
        await again.submit("one", destroy(), 10)
    assert (await again.submit("one", asked, 10)).state == "done"
    assert after_death.performed == [asked.vm_id]


async def test_stop_cancels_operations_and_accepts_no_more(tmp_path: Path) -> None:
    work = Work()
    operations = await opened(tmp_path, work)
    asked = destroy()
    await operations.submit("one", asked, 0)
    await operations.stop(5)
    assert (await operations.wait("one", 0)).error is not None
    with pytest.raises(HostUnreachable):
        await operations.submit("two", destroy(), 0)
    entry = json.loads((tmp_path / "one.json").read_text())
    assert entry["state"] == "interrupted"


async def test_unknown_id_is_missing(tmp_path: Path) -> None:
    operations = await opened(tmp_path, Work())
    with pytest.raises(NoSuchOperation):
        await operations.wait("never", 0)


async def test_journal_holds_no_secret_and_its_key_is_private(tmp_path: Path) -> None:
    work = Work()
    work.go_on.set()
    operations = await opened(tmp_path, work)
    create = CreateMachine(
        vm_id=new_vm_id(),
        machine_kind=MachineKind.BROWSER,
        memory_mib=512,
        vcpus=1,
        disk_mib=64,
        token=SecretStr(SECRET),
    )
    write = WriteFiles(
        vm_id=create.vm_id,
        files=[WireFile.model_validate({"path": "/root/x", "content": "c2stbWFkZS11cA=="})],
    )
    await operations.submit("create", create, 10)
    await operations.submit("write", write, 10)
    stored = b"".join(path.read_bytes() for path in tmp_path.iterdir() if path.name != "key")
    assert SECRET.encode() not in stored
    assert b"sk-made-up" not in stored
    assert b"c2stbWFkZS11cA" not in stored
    assert (tmp_path / "key").stat().st_mode & 0o777 == 0o600
    other = create.model_copy(update={"token": SecretStr("another")})
    with pytest.raises(OperationMismatch):
        await operations.submit("create", other, 10)


async def test_old_and_surplus_entries_are_removed(tmp_path: Path) -> None:
    work = Work()
    work.go_on.set()
    operations = await opened(tmp_path, work, max_entries=3)
    for number in range(6):
        await operations.submit(f"op-{number}", destroy(), 10)
    await operations.stop(5)
    stored = sorted(path.name for path in tmp_path.glob("*.json"))
    assert stored == ["op-3.json", "op-4.json", "op-5.json"]
    with pytest.raises(NoSuchOperation):
        await operations.wait("op-0", 0)
    journal = OperationJournal(tmp_path, max_entries=3, retention_s=0)
    assert len(journal.outdated(journal.open())) == 3


async def test_corrupt_entry_is_removed_and_can_be_requested_again(tmp_path: Path) -> None:
    work = Work()
    work.go_on.set()
    operations = await opened(tmp_path, work)
    asked = destroy()
    await operations.submit("one", asked, 10)
    (tmp_path / "one.json").write_text('{"operation_id": "one", "st')
    again = await opened(tmp_path, work)
    assert (await again.submit("one", asked, 10)).state == "done"
    assert len(work.performed) == 2


async def test_full_disk_does_not_prevent_destruction(tmp_path: Path) -> None:
    work = Work()
    work.go_on.set()
    operations = await opened(tmp_path / "journal", work)
    (tmp_path / "journal" / ".one.json.new").mkdir()  # root writes anywhere else
    began = time.monotonic()
    assert (await operations.submit("one", destroy(), 10)).state == "done"
    assert time.monotonic() - began < 10
