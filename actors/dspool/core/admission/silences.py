"""Alerts that somebody has silenced, with a reason and an end. Pure: the time is an argument."""

from __future__ import annotations

from typing import Final

from msgspec import Struct

from dspool.messages.versioned_pickle import Message

KEPT: Final = 64
"""Of one pool. There are fewer alerts; a name that no version knows any more must not stay for ever."""


class AlertSilence(Message, Struct, frozen=True):
    """An alert still fires and is shown, but it alarms nobody until `until`. Times are wall-clock seconds."""

    reason: str
    since: float
    until: float
    by: str = ""
    """The principal who silenced it; empty: nobody who has a name, or not for whoever reads it."""


Silences = dict[str, AlertSilence]
"""By the alert's name."""


def changed(before: Silences, alert: str, silence: AlertSilence | None, *, now: float) -> Silences:
    """With `silence` for `alert` (None: it has none any more), without those that are over."""
    kept = {name: one for name, one in before.items() if one.until > now and name != alert}
    if silence is not None:
        kept[alert] = silence
    return dict(list(kept.items())[-KEPT:])


def silence_of(silences: Silences, alert: str, *, now: float) -> AlertSilence | None:
    """The silence of `alert` that has not ended."""
    silence = silences.get(alert)
    return silence if silence is not None and silence.until > now else None


__all__ = ["KEPT", "AlertSilence", "Silences", "changed", "silence_of"]
