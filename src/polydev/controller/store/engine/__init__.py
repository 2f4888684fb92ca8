"""Databases: connections, transactions, migrations, notifications."""
