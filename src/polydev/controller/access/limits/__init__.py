"""Rate limits, client addresses and CSRF protection."""
