"""Render HTML: templates, filters, labels, assets."""
