"""Migrations. A migration is never changed once it has been released."""
