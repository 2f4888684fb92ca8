"""Queries of users and their ways to sign in."""
