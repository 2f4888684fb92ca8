"""The identity provider: accounts, sign-in pages, tokens."""
