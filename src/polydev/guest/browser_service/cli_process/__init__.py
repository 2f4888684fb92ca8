"""Processes of a CLI: a command in a terminal, or an agent."""
