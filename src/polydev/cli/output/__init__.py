"""Terminal output: steps, tables, confirmation."""
