"""The vault: compatible with the Node.js controller, and detects every change."""

from __future__ import annotations

import asyncio
import base64
import json
import subprocess
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import SecretStr

from polydev.controller.store.engine.database import Database, open_database
from polydev.controller.store.queries.accounts import users
from polydev.controller.store.queries.connect import credentials, vault_keys
from polydev.controller.vault import MAX_PLAINTEXT_BYTES, Binding, Vault, unlock
from polydev.controller.vault.sealing import Sealer
from polydev.shared.domain import CredentialId, SealedCredential, User, UserId, now
from polydev.shared.errors import CredentialDamaged, WrongEncryptionKey

NODE = "/usr/bin/node"
KEY = SecretStr("correct horse battery staple, with ümlaut")
BINDING = Binding(CredentialId("c-1"), UserId("ann"), "codex")
PLAINTEXT = json.dumps({"tokens": {"access_token": "made-up-token-ä"}}).encode()

NODE_SEAL = """
const crypto = require('crypto');
const [key, plaintext] = JSON.parse(require('fs').readFileSync(0, 'utf8'));
const salt = crypto.randomBytes(32), iv = crypto.randomBytes(16);
const cipher = crypto.createCipheriv('aes-256-gcm', crypto.scryptSync(key, salt, 32), iv);
const body = Buffer.concat([cipher.update(plaintext, 'utf8'), cipher.final()]);
console.log(JSON.stringify({
  encrypted_credentials: body.toString('base64'), encryption_iv: iv.toString('base64'),
  encryption_tag: cipher.getAuthTag().toString('base64'), encryption_salt: salt.toString('base64'),
}));
"""

NODE_OPEN = """
const crypto = require('crypto');
const [key, row, data] = JSON.parse(require('fs').readFileSync(0, 'utf8'));
const raw = (name) => Buffer.from(row[name], 'base64');
const derived = crypto.scryptSync(key, raw('encryption_salt'), 32);
const decipher = crypto.createDecipheriv('aes-256-gcm', derived, raw('encryption_iv'));
decipher.setAAD(Buffer.from(data, 'base64'));
decipher.setAuthTag(raw('encryption_tag'));
const body = Buffer.concat([decipher.update(raw('encrypted_credentials')), decipher.final()]);
console.log(JSON.stringify(body.toString('utf8')));
"""


def _node(program: str, *values: object) -> object:
    done = subprocess.run(
        [NODE, "-e", program], input=json.dumps(values), capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout)


def _columns(row: SealedCredential) -> dict[str, str]:
    return {
        "encrypted_credentials": row.encrypted_credentials,
        "encryption_iv": row.encryption_iv,
        "encryption_tag": row.encryption_tag,
        "encryption_salt": row.encryption_salt,
    }


def _legacy(columns: object) -> SealedCredential:
    assert isinstance(columns, dict)
    return SealedCredential(
        credential_id=CredentialId("old"),
        user_id=UserId("ann"),
        provider="codex",
        key_id=None,
        created_at=now(),
        **columns,
    )


def _flipped(text: str) -> str:
    raw = bytearray(base64.b64decode(text))
    raw[0] ^= 1
    return base64.b64encode(raw).decode()


@pytest.fixture
def vault() -> Vault:
    return Vault(KEY, "key-1")


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Database]:
    database = open_database(None, tmp_path)
    await database.upgrade()
    async with database.write() as connection:
        await users.insert(connection, User(UserId("ann"), "ann@example.test", now()))
    yield database
    await database.close()


async def test_rows_written_by_node_open(vault: Vault) -> None:
    row = _legacy(_node(NODE_SEAL, KEY.get_secret_value(), PLAINTEXT.decode()))
    assert await vault.open(row) == PLAINTEXT


async def test_node_opens_what_the_vault_sealed(vault: Vault) -> None:
    row = await vault.seal(PLAINTEXT, BINDING, now())
    data = base64.b64encode(BINDING.authenticated_data()).decode()
    assert _node(NODE_OPEN, KEY.get_secret_value(), _columns(row), data) == PLAINTEXT.decode()


async def test_sizes_are_those_of_the_specification(vault: Vault) -> None:
    row = await vault.seal(PLAINTEXT, BINDING, now())
    sizes = {name: len(base64.b64decode(text)) for name, text in _columns(row).items()}
    assert sizes == {
        "encrypted_credentials": len(PLAINTEXT),
        "encryption_iv": 16,
        "encryption_tag": 16,
        "encryption_salt": 32,
    }
    assert row.key_id == "key-1"


async def test_salt_and_iv_are_fresh_each_time(vault: Vault) -> None:
    one, two = await asyncio.gather(*(vault.seal(PLAINTEXT, BINDING, now()) for _ in range(2)))
    assert not set(_columns(one).values()) & set(_columns(two).values())


@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    plaintext=st.binary(max_size=4096),
    user=st.text(max_size=20),
    provider=st.text(max_size=20),
)
async def test_sealed_text_opens(plaintext: bytes, user: str, provider: str) -> None:
    vault = Vault(KEY, "key-1")
    binding = Binding(CredentialId("c"), UserId(user), provider)
    assert await vault.open(await vault.seal(plaintext, binding, now())) == plaintext


@given(parts=st.lists(st.text(max_size=8), min_size=3, max_size=3).map(tuple), other=st.data())
def test_different_owners_have_different_authenticated_data(
    parts: tuple[str, str, str], other: st.DataObject
) -> None:
    others = other.draw(st.tuples(*([st.text(max_size=8)] * 3)).filter(lambda it: it != parts))
    assert (
        Binding(CredentialId(parts[0]), UserId(parts[1]), parts[2]).authenticated_data()
        != Binding(CredentialId(others[0]), UserId(others[1]), others[2]).authenticated_data()
    )


@pytest.mark.parametrize(
    "column",
    ["encrypted_credentials", "encryption_iv", "encryption_tag", "encryption_salt"],
)
@pytest.mark.parametrize("damage", [_flipped, lambda text: text[:-4], lambda text: text + "!"])
async def test_change_in_any_column_is_detected(vault: Vault, column: str, damage: object) -> None:
    assert callable(damage)
    row = await vault.seal(PLAINTEXT, BINDING, now())
    damaged = replace(row, **{column: damage(getattr(row, column))})
    with pytest.raises(CredentialDamaged, match="codex"):
        await vault.open(damaged)


@pytest.mark.parametrize(
    "change",
    [
        {"user_id": UserId("ben")},
        {"provider": "claude_code"},
        {"credential_id": CredentialId("c-2")},
        {"key_id": None},
    ],
)
async def test_a_row_moved_to_another_owner_does_not_open(
    vault: Vault, change: dict[str, str | None]
) -> None:
    row = await vault.seal(PLAINTEXT, BINDING, now())
    with pytest.raises(CredentialDamaged):
        await vault.open(replace(row, **change))


async def test_base64_with_spare_bits_set_is_a_change(vault: Vault) -> None:
    row = await vault.seal(b"x", BINDING, now())
    text = row.encrypted_credentials
    assert text.endswith("==")
    spare = text[0] + chr(ord(text[1]) + 1) + "=="
    assert base64.b64decode(spare) == base64.b64decode(text)
    with pytest.raises(CredentialDamaged):
        await vault.open(replace(row, encrypted_credentials=spare))


async def test_row_of_another_key_names_that_key(vault: Vault) -> None:
    row = replace(await vault.seal(PLAINTEXT, BINDING, now()), key_id="key-2")
    with pytest.raises(WrongEncryptionKey, match="key-2"):
        await vault.open(row)


async def test_errors_and_reprs_hold_no_secrets(vault: Vault) -> None:
    row = await vault.seal(PLAINTEXT, BINDING, now())
    with pytest.raises(CredentialDamaged) as caught:
        await vault.open(replace(row, user_id=UserId("ben")))
    text = f"{caught.value.line()} {vault!r} {row!r} {vars(vault)}"
    assert "made-up-token" not in text
    assert KEY.get_secret_value() not in text


async def test_oversized_plaintext_is_refused(vault: Vault) -> None:
    with pytest.raises(ValueError, match="exceeds the limit"):
        await vault.seal(b"x" * (MAX_PLAINTEXT_BYTES + 1), BINDING, now())


async def test_sealing_leaves_the_event_loop_free(vault: Vault) -> None:
    work = asyncio.gather(*(vault.seal(PLAINTEXT, BINDING, now()) for _ in range(4)))
    turns = 0
    while not work.done():
        await asyncio.sleep(0)
        turns += 1
    assert turns > 200  # on the loop itself it would be a handful


async def test_fresh_database_accepts_the_key(store: Database) -> None:
    async with store.write() as connection:
        first = await unlock(connection, KEY, now())
    async with store.write() as connection:
        again = await unlock(connection, KEY, now())
        assert len(await vault_keys.list_all(connection)) == 1
    assert first.key_id == again.key_id


async def test_another_key_is_refused_at_startup(store: Database) -> None:
    async with store.write() as connection:
        await unlock(connection, KEY, now())
    with pytest.raises(WrongEncryptionKey, match="ENCRYPTION_KEY"):
        async with store.write() as connection:
            await unlock(connection, SecretStr("another"), now())


async def test_an_earlier_controllers_rows_prove_the_key(store: Database) -> None:
    row = _legacy(_node(NODE_SEAL, KEY.get_secret_value(), PLAINTEXT.decode()))
    async with store.write() as connection:
        await credentials.upsert(connection, row)
    with pytest.raises(WrongEncryptionKey, match="earlier"):
        async with store.write() as connection:
            await unlock(connection, SecretStr("another"), now())
    async with store.write() as connection:
        assert await (await unlock(connection, KEY, now())).open(row) == PLAINTEXT


async def test_freshly_sealed_row_opens_once_without_key_derivation(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    derived: list[bytes] = []
    derive = Sealer._scrypt

    def noted(self: Sealer, salt: bytes) -> bytes:
        derived.append(salt)
        return derive(self, salt)

    monkeypatch.setattr(Sealer, "_scrypt", noted)
    sealer = Sealer(KEY, asyncio.Semaphore(1))
    box = await sealer.seal(b"secret", None)
    assert await sealer.open(box, None) == b"secret"
    assert len(derived) == 1
    assert await sealer.open(box, None) == b"secret"
    assert len(derived) == 2
    assert not vars(sealer)["_just_sealed"]
