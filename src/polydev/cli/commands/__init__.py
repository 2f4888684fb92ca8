"""One module per noun: `polydev <noun> ...`."""
