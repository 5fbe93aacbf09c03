"""The operations console: dashboard, alerts, Grafana and the panels for Ray's dashboard. Nothing below knows it."""

from dspool_console.console import Console

__all__ = ["Console"]
