"""Polydev: a private microVM per user for AI coding CLIs, with logins and chats."""

__version__ = "0.1.0"
