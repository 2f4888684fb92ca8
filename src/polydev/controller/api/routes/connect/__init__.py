"""Routes of connect sessions, live view and credentials."""
