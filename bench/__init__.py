"""What Polydev costs, measured against what it could cost: both sides in one run, alternating."""
