"""What Polydev costs, measured against what it could cost: both sides in one run, alternating."""

import sys
from pathlib import Path

# The worlds of the tests (a PostgreSQL server, agents on this host) serve here, too.
sys.path.append(str(Path(__file__).parents[1] / "tests" / "support"))
