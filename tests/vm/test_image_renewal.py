"""Test a renewed golden image under an existing machine."""

from __future__ import annotations

import os
import shutil
import subprocess
import uuid
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from agent_process import agent_world

from polydev.hostagent.images import GoldenImage, ImageStore
from polydev.hostagent.images.manifest import ImageFile, write_manifest
from polydev.hostagent.images.recipe import digest_file
from polydev.shared.domain import MachineKind, new_vm_id
from polydev.shared.host_client import HostClient
from polydev.shared.host_protocol import (
    CreateMachine,
    HostMachineView,
    Operation,
    StartMachine,
    StopMachine,
)

pytestmark = pytest.mark.vm

IMAGES = os.environ.get("POLYDEV_IMAGES_DIR", "/var/cache/polydev/golden-images")
BOOT_LIMIT_S = 240


def copied_store(root: Path) -> tuple[ImageStore, GoldenImage]:
    """Link the current images into a new store; return it with its CLI image."""
    shared = ImageStore(Path(IMAGES))
    for kind in ("kernel", "cli"):
        shutil.copytree(
            shared.require(kind).folder, root / shared.require(kind).name, copy_function=os.link
        )
    store = ImageStore(root)
    return store, store.require("cli")


def renew_image(store: ImageStore, old: GoldenImage, changes: dict[str, str]) -> GoldenImage:
    """Add a newer image with changed files to the store."""
    folder = store.root / "cli-0123456789abcdef"
    folder.mkdir()
    root_image = folder / "root.img"
    shutil.copyfile(old.root_image, root_image)
    commands = []
    for number, (path, text) in enumerate(changes.items()):
        content = store.root.parent / f"content-{number}"
        content.write_text(text)
        commands += [f"rm {path}", f"write {content} {path}"]
    subprocess.run(
        ["debugfs", "-w", "-f", "-", root_image], input="\n".join(commands), text=True, check=True
    )
    root_image.chmod(0o444)
    files = {"root.img": ImageFile(digest_file(root_image), root_image.stat().st_size)}
    later = old.created_at + timedelta(seconds=1)
    image = replace(old, folder=folder, hash="0" * 64, created_at=later, files=files)
    write_manifest(image)
    return store.named(folder.name)


async def run(host: HostClient, operation: Operation) -> HostMachineView:
    view = await host.run(f"test-{uuid.uuid4()}", operation, BOOT_LIMIT_S)
    assert view is not None
    return view


async def output_of(host: HostClient, vm_id: str, script: str) -> str:
    output = await host.run_program(vm_id, ["sh", "-ec", script], timeout_s=60)
    assert output.exit_code == 0, output.stderr
    return output.stdout.decode()


async def test_next_start_uses_new_image_and_retains_user_files(
    tmp_path: Path,
) -> None:
    store, old = copied_store(tmp_path / "images")
    changes = {"/etc/added": "new\n", "/etc/issue": "new\n", "/etc/debian_version": "new\n"}
    new = renew_image(store, old, changes)
    assert store.require("cli") == new
    store.use(old)  # as `polydev image rollback` does
    async with agent_world(POLYDEV_DRIVER="auto", POLYDEV_IMAGES_DIR=str(store.root)) as agent:
        await agent.start()
        async with agent.host() as host:
            vm_id = new_vm_id()
            created = await run(
                host,
                CreateMachine(
                    vm_id=vm_id,
                    machine_kind=MachineKind.CLI,
                    memory_mib=512,
                    vcpus=1,
                    disk_mib=256,
                    ready_timeout_s=BOOT_LIMIT_S,
                ),
            )
            assert created.image == old.name, "the store was rolled back"
            writing = "echo mine > /root/mine; echo mine >> /etc/issue; rm /etc/issue.net"
            assert "new" not in await output_of(host, vm_id, f"{writing}; cat /etc/issue")
            store.use_newest("cli")
            assert (await host.machine(vm_id)).image == old.name, (
                "a running machine keeps its image"
            )
            await run(host, StopMachine(vm_id=vm_id))

            started = await run(host, StartMachine(vm_id=vm_id, ready_timeout_s=BOOT_LIMIT_S))
            assert started.image == new.name
            script = "cat /root/mine; test ! -e /etc/issue.net"
            assert await output_of(host, vm_id, script) == "mine\n"
            assert (
                await output_of(host, vm_id, "cat /etc/added /etc/debian_version") == "new\nnew\n"
            )
            issue = await output_of(host, vm_id, "cat /etc/issue")
            assert issue.endswith("mine\n")
            assert "new" not in issue, "the user's changes win"
