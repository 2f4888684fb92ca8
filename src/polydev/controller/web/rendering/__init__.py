"""HTML rendering: templates, filters, labels, assets."""
