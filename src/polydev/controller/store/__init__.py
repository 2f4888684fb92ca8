"""The store: what the controller remembers, in SQLite or PostgreSQL.

`database.py` opens it (`sqlite.py` and `postgresql.py` hold what differs), `migrations/` makes its
tables and says who may do what with them, `tables.py` names them; beside them stands one module of
queries per aggregate. Queries are functions that take a connection and return the
frozen dataclasses of `domain`; a write happens in `Database.write()`, and the caller holds the
transaction. Nothing here knows HTTP, machines' hosts, or what a credential says.

The SQL keeps to what SQLite and PostgreSQL share, except in those two, `roles.py`, `locks.py` and
`notifications.py`.
"""
