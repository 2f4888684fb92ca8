"""The machines of this host: registry, lifecycle, hibernation, recovery."""
