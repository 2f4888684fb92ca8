"""Virtual machine monitors behind one contract (`vmm.py`)."""
