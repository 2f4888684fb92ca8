"""Agent Client Protocol: agents, transport, events."""
