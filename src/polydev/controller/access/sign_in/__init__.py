"""Accounts, passwords, invitations and browser sign-ins."""
