"""What operators see of a running controller: metrics (Prometheus) and traces (OpenTelemetry).

Everything above may count and trace; nothing here knows rows, requests or people. No label and no
attribute is ever a person's id in a metric, a secret, or a URL. Logs: `polydev.logging_setup`.
"""
