"""Benchmarks: Polydev against a reference, in alternating runs of one process."""

import sys
from pathlib import Path

# Reuse the test environments (a PostgreSQL server, agents on this host).
_SUPPORT = Path(__file__).parents[1] / "tests" / "support"
sys.path += sorted({str(module.parent) for module in _SUPPORT.glob("*/*.py")})
