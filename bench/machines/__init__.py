"""Benchmarks of machines and the host agent."""
