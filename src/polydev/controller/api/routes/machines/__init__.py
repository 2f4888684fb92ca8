"""Routes of machines: lifecycle, files, terminal, usage."""
