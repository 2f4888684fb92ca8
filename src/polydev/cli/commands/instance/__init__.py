"""Commands for the Polydev instance on this machine."""
