"""Test doubles that ship with Polydev: fake providers, simulated machines, fake Firecracker."""
