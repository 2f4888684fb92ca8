"""Logging set-up, log context, and redaction of secrets."""
