"""Chat events: buffer, writer, subscriptions."""
