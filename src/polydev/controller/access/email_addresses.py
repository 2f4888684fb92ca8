"""Normalize e-mail addresses, so that each has one account.

Polydev sends no mail, so an address that a user types in is a name, not a proof.
"""

from __future__ import annotations

import hashlib
import unicodedata

import idna

from polydev.shared.errors import BadRequest

MAX_CHARACTERS = 254
_MAX_LOCAL = 64


def normalize(text: str) -> str:
    """Return the address in lower case, NFKC, with an IDNA domain.

    Raises BadRequest if it is not an address.
    """
    address = unicodedata.normalize("NFKC", text.strip()).casefold()
    local, at, domain = address.rpartition("@")
    if not at or not 0 < len(local) <= _MAX_LOCAL or not _is_plain(local):
        raise _not_an_address()
    try:
        ascii_domain = idna.encode(domain, uts46=True).decode("ascii")
    except (idna.IDNAError, UnicodeError):
        raise _not_an_address() from None
    address = f"{local}@{ascii_domain}"
    if len(address) > MAX_CHARACTERS:
        raise _not_an_address()
    return address


def hash_address(address: str) -> str:
    """Return a hash of the address for audit log and rate limits."""
    return hashlib.sha256(address.encode()).hexdigest()[:32]


def _is_plain(local: str) -> bool:
    """Check for blanks, control characters, quotes and brackets, which real addresses lack."""
    return all(it not in '@"(),:;<>[\\]' and unicodedata.category(it)[0] in "LMNPS" for it in local)


def _not_an_address() -> BadRequest:
    return BadRequest("Not an e-mail address", hint="Write it as name@example.org")
