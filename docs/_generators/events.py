"""Every event with what comes with it."""

from __future__ import annotations

import logging
from typing import Final

from docs._generators.markdown import codes
from docs._generators.markdown import table as markdown_table
from dspool.telemetry.event_log import FORWARDED
from dspool.telemetry.events import EVENTS, Event

_OF_AN_OPERATION: Final = EVENTS["operation.start"].metadata
_HEADS = ("event", "meaning", "measurements (unit)", "metadata", "level")


def of_the_pool() -> str:
    """The events that reach the pool's metrics actor."""
    return markdown_table(_HEADS, (_row(event) for event in EVENTS.values() if event.name in FORWARDED))


def of_a_process() -> str:
    """Those that only handlers in the same process are told."""
    return markdown_table(_HEADS, (_row(event) for event in EVENTS.values() if event.name not in FORWARDED))


def operation_metadata() -> str:
    return f"{codes(_OF_AN_OPERATION)}.\n"


def _row(event: Event) -> tuple[str, ...]:
    return (
        f"`{event.name}`",
        event.meaning,
        ", ".join(f"`{name}` ({unit})" for name, unit in event.measurements.items()),
        _metadata(event.metadata),
        logging.getLevelName(event.level).lower(),
    )


def _metadata(keys: tuple[str, ...]) -> str:
    if keys[: len(_OF_AN_OPERATION)] == _OF_AN_OPERATION:
        return ", ".join(filter(None, ["an operation's", codes(keys[len(_OF_AN_OPERATION) :])]))
    return codes(keys)
