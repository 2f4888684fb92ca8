"""Everything a machine needs before it boots: disk, keys, config drive, files."""
