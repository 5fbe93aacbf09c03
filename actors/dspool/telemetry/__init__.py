"""What is seen of a pool: events, logs, traces and metrics, in the formats that operators use."""

from dspool.telemetry.events import EVENTS, Event, Span, attach, detach, emit

__all__ = ["EVENTS", "Event", "Span", "attach", "detach", "emit"]
