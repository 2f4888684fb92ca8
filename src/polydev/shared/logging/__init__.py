"""Logging setup, log context, and redaction of secrets."""
