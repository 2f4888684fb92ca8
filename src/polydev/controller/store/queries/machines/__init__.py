"""Queries of machines, hosts and capacity."""
