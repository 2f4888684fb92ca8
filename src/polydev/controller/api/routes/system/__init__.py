"""Routes of health, metrics, events and doctor."""
