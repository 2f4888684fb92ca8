"""Routes for health, metrics, events and doctor."""
