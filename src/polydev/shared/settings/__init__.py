"""Read settings from the environment, and explain the ones that cannot be used."""
