"""Key derivation and password hashing that cost nothing, for controllers under test.

A controller derives three keys with scrypt when it starts, which is most of its start, and hashes a
password for each sign-up. What that protects from does not attack tests. The costs of the product
are tested in `test_vault.py`, `test_passwords.py` and `test_start.py`.
"""

from __future__ import annotations

from collections.abc import Callable

from argon2.profiles import CHEAPEST

SCRYPT_COST = 2


def apply(replace: Callable[[object, str, object], None]) -> None:
    """Make hashing cheap in this process: `replace` is `setattr`, or a monkeypatch's."""
    from polydev.controller.access.sign_in import passwords
    from polydev.controller.vault import sealing

    replace(sealing, "SCRYPT_COST", SCRYPT_COST)
    replace(passwords, "RFC_9106_LOW_MEMORY", CHEAPEST)
