"""The file format of snapshots. Pure.

    magic, length of the header (4 bytes), header (JSON), then chunk after chunk:
    length of the chunk (4 bytes), encrypted bytes

A chunk holds at most 1 MiB: one byte that says if it is compressed, then its content. Each is
encrypted with AES-256-GCM under a key derived from the host's key and a salt for this file. The
nonce counts the chunks and marks the last, and each chunk is bound to the header: missing, moved,
repeated, added or changed chunks fail to decrypt (the STREAM construction of Hoang, Reyhanitabar,
Rogaway and Vizár, 2015).
"""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass

from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from pydantic import BaseModel, ConfigDict, Field

from polydev.hostagent.snapshots.key import MemoryKey
from polydev.shared.errors import SnapshotUnusable

MAGIC = b"POLYDEV MEMORY\r\n"
FORMAT = 1
LENGTH = struct.Struct(">I")
CHUNK_BYTES = 1024 * 1024
LONGEST_SEALED = 1 + CHUNK_BYTES + 16
LONGEST_HEADER = 64 * 1024
PLAIN, COMPRESSED = b"\0", b"\1"
SALT_BYTES = 32

_NONCE = struct.Struct(">Q3xB")


class Header(BaseModel):
    """The part of a snapshot that is readable without the key."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    format: int
    """Checked first: a later format may have other fields."""
    driver: str
    fingerprint: str = Field(max_length=LONGEST_HEADER // 2)
    """`Driver.fingerprint` of the saved machine."""
    key_id: str
    salt: str
    """Hexadecimal."""


@dataclass(frozen=True, slots=True)
class Labels:
    """The driver and machine fingerprint that a snapshot belongs to."""

    driver: str
    fingerprint: str

    def require(self, saved: Header) -> None:
        """Raise SnapshotUnusable, naming the difference, if a snapshot does not fit."""
        if saved.driver != self.driver:
            raise SnapshotUnusable(
                f"Its memory was saved by the driver {saved.driver}, but this host uses"
                f" {self.driver}"
            )
        if changed := describe_difference(saved.fingerprint, self.fingerprint):
            raise SnapshotUnusable(f"Changed since its memory was saved: {changed}")


class Seal:
    """Encrypts and decrypts the chunks of one file, in order."""

    def __init__(self, key: MemoryKey, salt: bytes, header: bytes) -> None:
        """`header` is its bytes, as stored in the file."""
        derived = HKDF(SHA256(), length=32, salt=salt, info=b"polydev memory snapshot")
        self._cipher = AESGCM(derived.derive(key.secret))
        self._associated_data = hashlib.sha256(header).digest()
        self._count = 0

    def encrypt(self, content: bytes, *, is_last: bool) -> bytes:
        return self._cipher.encrypt(self._nonce(is_last), content, self._associated_data)

    def decrypt(self, sealed: bytes, *, is_last: bool) -> bytes:
        """Raises: cryptography.exceptions.InvalidTag."""
        return self._cipher.decrypt(self._nonce(is_last), sealed, self._associated_data)

    def _nonce(self, is_last: bool) -> bytes:
        self._count += 1
        return _NONCE.pack(self._count, is_last)


def describe_difference(saved: str, here: str) -> str:
    """Name the entries in which two fingerprints differ; empty if equal."""
    before, now = (dict(_parse(text)) for text in (saved, here))
    names = [name for name in {**before, **now} if before.get(name) != now.get(name)]
    if saved != here and not names:
        names = ["order"]
    return ", ".join(names)


def _parse(text: str) -> list[tuple[str, str]]:
    pairs = (line.partition(": ") for line in text.splitlines())
    return [(name, value) for name, _, value in pairs]
