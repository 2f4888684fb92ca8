"""Queries of connect sessions, credentials and vault keys."""
