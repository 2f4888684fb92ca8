"""Validation of what CLIs and users provide."""
