"""Routes of accounts: sign-up, sign-in, tokens, deletion."""
