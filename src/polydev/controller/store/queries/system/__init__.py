"""Queries of audit, events, controllers and shared secrets."""
