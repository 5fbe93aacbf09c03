"""What a handler of the dashboard gets besides its request."""

from __future__ import annotations

from dataclasses import dataclass

from dspool_console.dashboard.service import Dashboard
from dspool_serve.access.security import Security
from dspool_serve.context import Context


@dataclass(frozen=True, slots=True)
class ConsoleContext(Context):
    dashboard: Dashboard
    security: Security
