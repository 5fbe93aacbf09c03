"""The alerts as they stand, and their silences: who does not want to hear of one, why, and until when."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Annotated, Any, Final

import msgspec
from msgspec import Meta, Struct

from dspool.core.admission.silences import AlertSilence
from dspool.errors import UnknownName, suggestion
from dspool_console.alerts import ALERTS
from dspool_console.alerts.watch import EVERY_S, AlertNow, without_names
from dspool_console.dashboard.service import ConsoleContext
from dspool_serve.api.common import (
    CHANGE,
    POOL,
    answer_json,
    answer_packed,
    body_of,
    names_sessions,
    patiently,
)
from dspool_serve.api.events import EventRow, event_row
from dspool_serve.http.requests import Request
from dspool_serve.http.responses import Response
from dspool_serve.http.routing import Route

NAMES: Final = tuple(alert.name for alert in ALERTS)
SHORTEST_S: Final = 60
LONGEST_S: Final = 30 * 86_400
LONGEST_REASON: Final = 300


class AlertList(Struct):
    """The alerts as they stand."""

    evaluated_at: Annotated[float | None, Meta(description="wall-clock seconds")]
    every_s: float
    alerts: Sequence[AlertNow]
    changes: Annotated[
        list[EventRow], Meta(description="the last that fired or ended, oldest first; numbered -1, -2, ...")
    ]


class SilenceRequest(Struct, forbid_unknown_fields=True):
    """Silence an alert: it still fires and is shown, but takes nothing from the pool's health and is not counted."""

    reason: Annotated[str, Meta(min_length=1, max_length=LONGEST_REASON)]
    duration_s: Annotated[float, Meta(ge=SHORTEST_S, le=LONGEST_S)]


class SilencedAlert(Struct):
    """An alert with its silence; null: it has none."""

    alert: str
    silence: AlertSilence | None


_silence_body: msgspec.json.Decoder[SilenceRequest] = msgspec.json.Decoder(SilenceRequest)


async def list_alerts(context: ConsoleContext, request: Request) -> Response:
    request.query(frozenset())
    watch = context.watch(request)
    if watch.alerts.evaluated_at is None:
        watch.start()
    # Somebody may have silenced one through another process.
    await watch.answers.get("silences", watch.alerts.read_silences)
    changes = [event_row(change) for change in watch.alerts.changes]
    alerts = watch.alerts.alerts
    shown = alerts if names_sessions(request) else without_names(alerts)
    return answer_packed(request, AlertList(watch.alerts.evaluated_at, EVERY_S, shown, changes))


async def silence_alert(context: ConsoleContext, request: Request) -> Response:
    name = _known(request)
    asked = await body_of(context, request, _silence_body)
    now = time.time()
    silence = AlertSilence(asked.reason, now, now + asked.duration_s, request.principal or "")
    return answer_json(await _keep(context, request, name, silence), 201)


async def end_silence(context: ConsoleContext, request: Request) -> Response:
    return answer_json(await _keep(context, request, _known(request), None))


async def _keep(
    context: ConsoleContext, request: Request, name: str, silence: AlertSilence | None
) -> SilencedAlert:
    watch = context.watch(request)
    watch.alerts.hear(await patiently(watch.pool.silence_alert(name, silence)))
    watch.answers.drop("overview")
    return SilencedAlert(name, silence)


def _known(request: Request) -> str:
    name = request.params["alert"]
    if name not in NAMES:
        meant = suggestion(name, NAMES) or f"; there are: {', '.join(NAMES)}"
        raise UnknownName(f"there is no alert {name[:80]!r}{meant}")
    return name


_ASKED: Final = ("invalid_request", "pool_not_ready")
_SILENCE: Final = POOL + "/alerts/{alert}/silence"
_REFUSED: Final[tuple[Any, ...]] = (*CHANGE, "unknown_name", "pool_not_ready", "store_failed")

ROUTES: Final[tuple[Route, ...]] = (
    Route(
        "GET",
        POOL + "/alerts",
        list_alerts,
        "The alerts as they stand in this ingress process, and those that fired or ended lately",
        AlertList,
        problems=_ASKED,
        role="reader",
    ),
    Route(
        "POST",
        _SILENCE,
        silence_alert,
        "Silence an alert for a time: it still fires and is shown, but alarms nobody",
        SilencedAlert,
        SilenceRequest,
        status=201,
        problems=_REFUSED,
    ),
    Route("DELETE", _SILENCE, end_silence, "End the silence of an alert", SilencedAlert, problems=_REFUSED),
)

__all__ = ["ROUTES", "AlertList"]
