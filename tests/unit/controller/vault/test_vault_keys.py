"""Several keys: one seals, each opens; a database refuses wrong and weak ones."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
from pydantic import SecretStr

from polydev.controller.store.engine.database import Database, open_database
from polydev.controller.store.queries.accounts import users
from polydev.controller.store.queries.connect import credentials, vault_keys
from polydev.controller.vault import Binding, Vault, unlock
from polydev.shared.domain import CredentialId, User, UserId, now
from polydev.shared.errors import BadSettings, CredentialDamaged, WrongEncryptionKey

OLD = SecretStr("the old key of these tests")
NEW = SecretStr("the new key of these tests")
ANN = UserId("ann")
BINDING = Binding(CredentialId("c-1"), ANN, "codex")


@pytest.fixture
async def store(database_url: str, tmp_path: Path) -> AsyncIterator[Database]:
    database = open_database(database_url, tmp_path)
    await database.upgrade()
    async with database.write() as connection:
        await users.insert(connection, User(ANN, "ann@example.test", now()))
    yield database
    await database.close()


async def _unlocked(store: Database, key: SecretStr, *others: SecretStr) -> Vault:
    async with store.write() as connection:
        return await unlock(connection, key, now(), others)


async def _sealed(store: Database, vault: Vault, text: bytes = b"made up") -> None:
    row = await vault.seal(text, BINDING, now())
    async with store.write() as connection:
        await credentials.upsert(connection, row)


async def _opened(store: Database, vault: Vault) -> bytes:
    async with store.read() as connection:
        row = await credentials.find_sealed(connection, BINDING.credential_id)
    assert row is not None
    return await vault.open(row)


async def test_each_step_of_a_rotation_opens_what_the_others_seal(store: Database) -> None:
    alone = await _unlocked(store, OLD)
    first = await _unlocked(store, OLD, NEW)
    second = await _unlocked(store, NEW, OLD)
    assert first.key_id == alone.key_id != second.key_id
    assert first.key_ids == second.key_ids
    for sealing in (first, second):
        await _sealed(store, sealing)
        for opening in (first, second):
            assert await _opened(store, opening) == b"made up"
    assert (await _unlocked(store, NEW)).key_id == second.key_id


async def test_controllers_that_start_concurrently_share_key_ids(store: Database) -> None:
    vaults = await asyncio.gather(*(_unlocked(store, OLD, NEW) for _ in range(4)))
    assert len({vault.key_id for vault in vaults}) == 1
    assert len({vault.key_ids for vault in vaults}) == 1
    async with store.read() as connection:
        assert len(await vault_keys.list_all(connection)) == 2


async def test_row_of_a_missing_key_has_a_hint(store: Database) -> None:
    vault = await _unlocked(store, OLD)
    other = Vault(NEW, "key-other")
    row = await other.seal(b"made up", BINDING, now())
    with pytest.raises(WrongEncryptionKey) as caught:
        await vault.open(row)
    assert "key-other" in caught.value.message
    assert "POLYDEV_OTHER_ENCRYPTION_KEYS" in caught.value.hint


async def test_a_new_key_alone_is_refused(store: Database) -> None:
    await _unlocked(store, OLD)
    with pytest.raises(WrongEncryptionKey):
        await _unlocked(store, NEW)
    with pytest.raises(WrongEncryptionKey):
        await _unlocked(store, NEW, SecretStr("a third key of these tests"))


async def test_key_that_opens_no_row_is_refused(store: Database) -> None:
    await _unlocked(store, OLD)
    await _sealed(store, await _unlocked(store, NEW, OLD))
    with pytest.raises(WrongEncryptionKey, match="opens no row"):
        await _unlocked(store, OLD)


@pytest.mark.parametrize("weak", ["?", "aaaaaaaaaaaaaaaaaaaaaaaa", "fifteen letters"])
async def test_weak_key_seals_no_new_row(store: Database, weak: str) -> None:
    with pytest.raises(BadSettings, match="ENCRYPTION_KEY is too weak") as caught:
        await _unlocked(store, SecretStr(weak))
    assert weak not in caught.value.line()
    await _unlocked(store, OLD)
    with pytest.raises(BadSettings, match="OTHER_ENCRYPTION_KEYS is too weak"):
        await _unlocked(store, OLD, SecretStr(weak))
    async with store.read() as connection:
        assert len(await vault_keys.list_all(connection)) == 1


async def test_weak_key_still_opens_its_rows(store: Database) -> None:
    weak = SecretStr("x")
    async with store.write() as connection:
        await vault_keys.insert(connection, await Vault(weak, "key-weak").canary(now()))
    assert (await _unlocked(store, weak)).key_id == "key-weak"
    assert (await _unlocked(store, NEW, weak)).key_ids > {"key-weak"}


async def test_an_earlier_controllers_row_opens_with_any_of_the_keys(store: Database) -> None:
    box = await Vault(OLD, "any")._sealer("any").seal(b"made up by node", None)
    async with store.write() as connection:
        row = await Vault(OLD, "any").seal(b"", BINDING, now())
        legacy = replace(
            row,
            key_id=None,
            encrypted_credentials=box.ciphertext,
            encryption_iv=box.iv,
            encryption_tag=box.tag,
            encryption_salt=box.salt,
        )
        await credentials.upsert(connection, legacy)
    vault = await _unlocked(store, NEW, OLD)
    assert await _opened(store, vault) == b"made up by node"


async def test_a_shared_secret_is_bound_to_its_name() -> None:
    vault = Vault(OLD, "key-1")
    row = await vault.seal_secret("one", b"made up", now())
    assert await vault.open_secret(row) == b"made up"
    with pytest.raises(CredentialDamaged, match="two"):
        await vault.open_secret(replace(row, name="two"))


async def test_concurrently_changed_row_is_not_overwritten(store: Database) -> None:
    vault = await _unlocked(store, NEW, OLD)
    await _sealed(store, vault, b"read by the rotation")
    async with store.read() as connection:
        (read,) = await credentials.list_not_sealed_with(connection, "another", "", 10)
    await _sealed(store, vault, b"written meanwhile")
    async with store.write() as connection:
        assert not await credentials.update_sealed(connection, read, read)
    assert await _opened(store, vault) == b"written meanwhile"
