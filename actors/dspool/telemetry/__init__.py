"""How operators see a pool: events, logs, traces and metrics, in their usual formats."""

from dspool.telemetry.events import EVENTS, Event, Span, attach, detach, emit

__all__ = ["EVENTS", "Event", "Span", "attach", "detach", "emit"]
