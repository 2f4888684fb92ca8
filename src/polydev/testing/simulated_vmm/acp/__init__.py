"""The Agent Client Protocol as the simulated CLIs speak it."""
