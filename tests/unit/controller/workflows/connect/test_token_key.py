"""Controllers share the key of browser machines' tokens, even an earlier version's."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
import sqlalchemy as sa
from pydantic import SecretStr

from polydev.controller.store.engine.database import Database
from polydev.controller.store.tables import shared_secrets
from polydev.controller.vault import Vault
from polydev.controller.workflows.connect.token_key import token_key


@pytest.fixture
async def vault() -> Vault:
    return Vault(SecretStr("an encryption key of the tests only"), "key-1")


async def test_controllers_that_start_concurrently_share_one_key(
    database: Database, vault: Vault, tmp_path: Path
) -> None:
    asked = (token_key(database, vault, tmp_path / "none") for _ in range(4))
    [key, *others] = await asyncio.gather(*asked)
    assert len(key) == 32
    assert others == [key] * 3


async def test_key_file_of_an_earlier_version_is_imported_once(
    database: Database, vault: Vault, tmp_path: Path
) -> None:
    earlier, stored = tmp_path / "browser-token-key", bytes(range(32))
    earlier.write_text(f"{stored.hex()}\n")
    assert await token_key(database, vault, earlier) == stored
    assert not earlier.exists(), "the key file would stay readable"
    assert await token_key(database, vault, earlier) == stored
    async with database.read() as connection:
        [row] = (await connection.execute(sa.select(shared_secrets))).all()
    assert stored.hex() not in str(row)
