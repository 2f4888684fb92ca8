"""The made-up people who have an account at the stand-in, and the CLIs that may ask for them.

Plain data, used by the sign-in pages and the token endpoints.
"""

import hashlib
import hmac
import re
import uuid
from dataclasses import dataclass


@dataclass(frozen=True)
class Account:
    email: str
    name: str
    password: str

    def identifier(self, what: str) -> str:
        """A UUID that is always the same for this account and purpose."""
        return str(uuid.uuid5(uuid.NAMESPACE_URL, f"standin:{what}:{self.email}"))


@dataclass(frozen=True)
class Client:
    """An OAuth client: a CLI, known by the id that is built into it."""

    client_id: str
    provider: str
    name: str
    redirect_uri: re.Pattern[str]

    def may_redirect_to(self, uri: str) -> bool:
        return self.redirect_uri.fullmatch(uri) is not None


PASTE_A_CODE_URI = "https://platform.claude.com/oauth/code/callback"

# The passwords are for show: nothing outside the stand-in knows these accounts.
ACCOUNTS = (
    Account("ada@example.test", "Ada Example", "analytical-engine"),
    Account("grace@example.test", "Grace Example", "nanosecond-wire"),
)

CLIENTS = (
    Client(
        "app_EMoamEEZ73f0CkXaXp7hrann",
        "openai",
        "Codex",
        re.compile(r"http://(localhost|127\.0\.0\.1):[0-9]{1,5}/auth/callback"),
    ),
    Client(
        "9d1c250a-e61b-44d9-88ed-5944d1962f5e",
        "anthropic",
        "Claude Code",
        re.compile(
            r"http://(localhost|127\.0\.0\.1):[0-9]{1,5}/callback|" + re.escape(PASTE_A_CODE_URI)
        ),
    ),
)


def client_named(client_id: str) -> Client | None:
    return next((client for client in CLIENTS if client.client_id == client_id), None)


def account_signing_in(email: str, password: str) -> Account | None:
    for account in ACCOUNTS:
        if account.email == email.strip().lower():
            given = hashlib.sha256(password.encode()).digest()
            real = hashlib.sha256(account.password.encode()).digest()
            return account if hmac.compare_digest(given, real) else None
    return None
