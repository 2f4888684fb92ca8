"""Routes of connect sessions, live views and credentials."""
