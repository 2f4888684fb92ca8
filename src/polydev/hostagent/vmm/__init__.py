"""Virtual machine monitors behind one contract (`contract.py`)."""
