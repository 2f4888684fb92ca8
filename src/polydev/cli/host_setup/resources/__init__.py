"""Resources of a host, one concern per module."""
