"""Code that more than one process uses: types, errors, wire formats, provider data."""
