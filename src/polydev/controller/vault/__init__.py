"""The vault: seals credentials and opens them again. Sole user of `cryptography`.

Workflows seal what a login left and open it to write it into the person's machine; the program's
start unlocks the vault, which proves that its keys are ones this database was sealed with. It must
not know providers' formats, machines or HTTP; of what it opens it logs nothing.

    sealing.py    one key: AES-256-GCM under a key that scrypt derives anew for every sealing
    vault.py      the keys together: seals with one, opens with any
    unlocking.py  finds out which row of `vault_keys` each key is

Sealing, as SPEC section 6 has it: AES-256-GCM; the key is scrypt (N=16384, r=8, p=1, 32 bytes) of
ENCRYPTION_KEY's text with a fresh 32-byte salt; the IV is 16 fresh bytes; ciphertext, IV, tag and
salt are base64. Rows written here are also bound to their person, provider and own id (additional
authenticated data) and name the key that sealed them. Rows without a key id are those of an
earlier Node.js controller (`crypto.scryptSync`, `aes-256-gcm`, no additional data).
"""

from polydev.controller.vault.sealing import MAX_PLAINTEXT_BYTES
from polydev.controller.vault.unlocking import require_strong, unlock
from polydev.controller.vault.vault import Binding, Vault

__all__ = ["MAX_PLAINTEXT_BYTES", "Binding", "Vault", "require_strong", "unlock"]
