"""Metrics (Prometheus) and traces (OpenTelemetry) of the controller.

Every package of the controller may use this one. It knows no rows, requests or users. No metric
label is a user id; no label or attribute is a secret or a URL. For logs, see
`polydev.shared.logging`.
"""
