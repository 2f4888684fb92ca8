"""E-mail addresses: one way to write each, so that one person has one account.

Polydev sends no mail, so an address that somebody types in is a name, not a proof.
"""

from __future__ import annotations

import hashlib
import unicodedata

import idna

from polydev.shared.errors import BadRequest

MAX_CHARACTERS = 254
_MAX_LOCAL = 64


def normalize(text: str) -> str:
    """The address in lower case, in Unicode's form NFKC, its domain as DNS has it.

    Raises BadRequest if it is none.
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
    """A name for an address in the audit log and in limits, where the address has no business."""
    return hashlib.sha256(address.encode()).hexdigest()[:32]


def _is_plain(local: str) -> bool:
    """No blanks, controls, quotes or brackets: what mailers allow there, people do not have."""
    return all(it not in '@"(),:;<>[\\]' and unicodedata.category(it)[0] in "LMNPS" for it in local)


def _not_an_address() -> BadRequest:
    return BadRequest("That is not an e-mail address", hint="Write it as name@example.org")
