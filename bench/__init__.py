"""Benchmarks: Polydev against a reference, in alternating runs of one process."""

import sys
from pathlib import Path

# Reuse the test environments (a PostgreSQL server, agents on this host).
sys.path.append(str(Path(__file__).parents[1] / "tests" / "support"))
