"""Polydev: a private microVM per person for AI coding CLIs, and a way to log them in there."""

__version__ = "0.1.0"
