"""Idempotent operations: dispatch by id, and their journal."""
