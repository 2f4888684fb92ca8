"""Commands that act on the Polydev of this machine: start, stop, images, database, demo."""
