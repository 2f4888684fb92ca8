"""Programs that simulated machines run, and their terminals."""
