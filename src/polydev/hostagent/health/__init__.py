"""Health checks, machine logs and the log archive."""
