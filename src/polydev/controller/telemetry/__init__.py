"""Metrics (Prometheus) and traces (OpenTelemetry) of the controller.

Every other module may use it; it knows no rows, requests or users. No metric label is a user's id,
and no label or attribute is a secret or a URL. Logs: `polydev.shared.logging`.
"""
