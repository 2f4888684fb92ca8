"""Cheap key derivation and password hashing for controllers under test.

A controller derives three keys with scrypt at startup, which takes most of that time, and hashes a
password per sign-up. `test_vault.py`, `test_passwords.py` and `test_start.py` test the real costs.
"""

from __future__ import annotations

from collections.abc import Callable

from argon2.profiles import CHEAPEST

SCRYPT_COST = 2


def apply(replace: Callable[[object, str, object], None]) -> None:
    """Make hashing cheap in this process; `replace` is `setattr` or monkeypatch's."""
    from polydev.controller.access.sign_in import passwords
    from polydev.controller.vault import sealing

    replace(sealing, "SCRYPT_COST", SCRYPT_COST)
    replace(passwords, "RFC_9106_LOW_MEMORY", CHEAPEST)
