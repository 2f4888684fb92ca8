"""Database engines: connections, transactions, migrations, notifications."""
