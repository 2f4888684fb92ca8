"""The fake accounts, and the OAuth clients (CLIs) that may ask for them."""

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
        """Return a UUID that is stable for this account and purpose."""
        return str(uuid.uuid5(uuid.NAMESPACE_URL, f"standin:{what}:{self.email}"))

    def api_key(self, provider: str) -> str:
        """Return the account's API key for a provider, in a real key's format."""
        prefix, characters = API_KEYS[provider]
        return (prefix + self.email.partition("@")[0]).ljust(characters, "0")


@dataclass(frozen=True)
class Client:
    """An OAuth client: a CLI, known by its built-in id."""

    client_id: str
    provider: str
    name: str
    redirect_uri: re.Pattern[str]
    needs_challenge: bool = True
    """True if PKCE is required (RFC 7636). Gemini CLI uses it only for pasted codes."""
    rotates: bool = True
    """True if a refresh token works once. Google's work until they are revoked."""

    def may_redirect_to(self, uri: str) -> bool:
        return self.redirect_uri.fullmatch(uri) is not None


# Prefix and length of each provider's API keys, which are fake too.
API_KEYS = {
    "anthropic": ("sk-ant-api03-standin-", 108),
    "openai": ("sk-proj-standin-", 164),
    "google": ("AIzaSyStandin-", 39),
}

PASTE_A_CODE_URI = "https://platform.claude.com/oauth/code/callback"

# The passwords are fake: these accounts exist nowhere else.
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
    Client(
        "681255809395-oo8ft2oprdrnp9e3aqf6av3hmdib135j.apps.googleusercontent.com",
        "google",
        "Gemini CLI",
        re.compile(
            r"http://(localhost|127\.0\.0\.1):[0-9]{1,5}/oauth2callback|"
            r"https://codeassist\.google\.com/authcode"
        ),
        needs_challenge=False,
        rotates=False,
    ),
)


def find_client(client_id: str) -> Client | None:
    return next((client for client in CLIENTS if client.client_id == client_id), None)


def find_account_by_key(key: str, provider: str) -> Account | None:
    """Return the owner of an API key."""
    found = (it for it in ACCOUNTS if hmac.compare_digest(it.api_key(provider), key))
    return next(found, None) if key.isascii() else None


def authenticate(email: str, password: str) -> Account | None:
    for account in ACCOUNTS:
        if account.email == email.strip().lower():
            given = hashlib.sha256(password.encode()).digest()
            real = hashlib.sha256(account.password.encode()).digest()
            return account if hmac.compare_digest(given, real) else None
    return None
