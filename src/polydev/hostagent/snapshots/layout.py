"""How a snapshot lies in its file: what `writer.py` writes and `reader.py` expects. Pure.

    magic, length of the header (4 bytes), header (JSON), then chunk after chunk:
    length of what follows (4 bytes), sealed bytes

A chunk holds at most 1 MiB: one byte that tells whether it is compressed, then its content. Each is
sealed with AES-256-GCM under a key of this file alone, made of the host's and a salt. The nonce
counts the chunks and marks the last, and each chunk is bound to the header: what is missing, moved,
repeated, added or changed does not open (the STREAM construction of Hoang, Reyhanitabar, Rogaway
and Vizár, 2015).
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
    """What can be known of a snapshot without opening it."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    format: int
    """A later format may have other fields; `reader.py` says so before it looks at them."""
    driver: str
    fingerprint: str = Field(max_length=LONGEST_HEADER // 2)
    """`Driver.fingerprint` of the machine that was saved."""
    key_id: str
    salt: str
    """Hexadecimal."""


@dataclass(frozen=True, slots=True)
class Labels:
    """What a snapshot fits: the driver, and its `fingerprint` of the machine."""

    driver: str
    fingerprint: str

    def require(self, saved: Header) -> None:
        """Raises: SnapshotUnusable that says in what a snapshot is another's."""
        if saved.driver != self.driver:
            raise SnapshotUnusable(
                f"Its memory was saved by the driver {saved.driver}, and this host runs"
                f" {self.driver}"
            )
        if words := difference(saved.fingerprint, self.fingerprint):
            raise SnapshotUnusable(f"Since its memory was saved this has changed: {words}")


class Seal:
    """Closes and opens the chunks of one file, one after the other."""

    def __init__(self, key: MemoryKey, salt: bytes, header: bytes) -> None:
        """`header`: its bytes, as they are in the file."""
        derived = HKDF(SHA256(), length=32, salt=salt, info=b"polydev memory snapshot")
        self._cipher = AESGCM(derived.derive(key.secret))
        self._bound_to = hashlib.sha256(header).digest()
        self._count = 0

    def close(self, content: bytes, *, is_last: bool) -> bytes:
        return self._cipher.encrypt(self._nonce(is_last), content, self._bound_to)

    def open(self, sealed: bytes, *, is_last: bool) -> bytes:
        """Raises: cryptography.exceptions.InvalidTag."""
        return self._cipher.decrypt(self._nonce(is_last), sealed, self._bound_to)

    def _nonce(self, is_last: bool) -> bytes:
        self._count += 1
        return _NONCE.pack(self._count, is_last)


def difference(saved: str, here: str) -> str:
    """In what two fingerprints differ, in words; empty if they do not."""
    before, now = (dict(_claims(text)) for text in (saved, here))
    names = [name for name in {**before, **now} if before.get(name) != now.get(name)]
    if saved != here and not names:
        names = ["order"]
    return ", ".join(names)


def _claims(text: str) -> list[tuple[str, str]]:
    pairs = (line.partition(": ") for line in text.splitlines())
    return [(name, value) for name, _, value in pairs]
