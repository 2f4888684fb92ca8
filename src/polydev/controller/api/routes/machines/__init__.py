"""Routes of machines: lifecycle, files, terminals, usage."""
