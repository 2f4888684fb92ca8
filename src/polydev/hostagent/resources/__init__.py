"""Memory and processor capacity, admission and usage."""
