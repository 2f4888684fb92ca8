"""Credential delivery, lifecycle and key rotation."""
