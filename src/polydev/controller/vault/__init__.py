"""The vault: seals and opens credentials. Sole user of `cryptography`.

Workflows seal the credentials of a login, and open them to write them into the user's machine. The
controller unlocks the vault at start, which proves that its keys are the ones that sealed this
database. The vault knows no provider formats, machines or HTTP, and logs nothing of what it opens.

    sealing.py    one key: AES-256-GCM with a key that scrypt derives for every sealing
    vault.py      all keys: seals with one, opens with any
    unlocking.py  matches each key with its row of `vault_keys`

Format: AES-256-GCM. The key is scrypt (N=16384, r=8, p=1, 32 bytes) of ENCRYPTION_KEY's text with a
random 32-byte salt. The IV is 16 random bytes. Ciphertext, IV, tag and salt are base64. The
additional authenticated data binds a row to its user, provider and own id; the row also names the
key that sealed it. Rows without a key id come from an earlier Node.js controller
(`crypto.scryptSync`, `aes-256-gcm`, no additional data).
"""

from polydev.controller.vault.sealing import MAX_PLAINTEXT_BYTES
from polydev.controller.vault.unlocking import require_strong, unlock
from polydev.controller.vault.vault import Binding, Vault

__all__ = ["MAX_PLAINTEXT_BYTES", "Binding", "Vault", "require_strong", "unlock"]
