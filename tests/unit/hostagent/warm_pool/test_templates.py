"""The folder of templates under concurrent access."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path

import pytest

from polydev.hostagent.machines.record import MachineFolder
from polydev.hostagent.warm_pool import templates
from polydev.hostagent.warm_pool.templates import Description, Template, Templates
from polydev.shared.domain import MachineSize

SHAPES = [MachineSize(512 * it, 1, 1024) for it in range(1, 6)]


def made(store: Templates, shape: MachineSize) -> Template:
    described = Description(shape=shape, image="i", kernel="k", fingerprint="f", key_id="key")
    with store.draft() as draft:
        draft.disk.touch()
        return store.finish(draft, described)


async def test_concurrent_requests_store_one_complete_shape(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace = Path.replace

    def replace_slowly(path: Path, target: Path) -> Path:
        time.sleep(0.05)  # gives concurrent writers time
        return replace(path, target)

    monkeypatch.setattr(Path, "replace", replace_slowly)
    store = Templates(tmp_path / "warm")
    await asyncio.gather(*(asyncio.to_thread(store.request, it) for it in SHAPES))
    assert store.requested() in SHAPES


def test_template_removed_during_a_read_is_not_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Templates(tmp_path / "warm")
    template = made(store, SHAPES[0])
    assert [it.described for it in store.all()] == [template.described]
    validate = Description.model_validate_json

    def validate_and_lose(content: bytes) -> Description:
        store.discard(template)
        return validate(content)

    monkeypatch.setattr(templates.Description, "model_validate_json", validate_and_lose)
    assert store.all() == []


def test_newest_template_comes_first(tmp_path: Path) -> None:
    store = Templates(tmp_path / "warm")
    for number, shape in enumerate(SHAPES[:3]):
        folder = MachineFolder(store.root, f"template-{3 - number}")
        folder.path.mkdir(parents=True)
        described = Description(shape=shape, image="i", kernel="k", fingerprint="f", key_id="key")
        (folder.path / "template.json").write_text(described.model_dump_json())
        os.utime(folder.path, ns=(0, number))
    assert [it.described.shape for it in store.all()] == SHAPES[2::-1]
