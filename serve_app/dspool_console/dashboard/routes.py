"""All routes of the dashboard. They are no part of the API: the OpenAPI document does not name them."""

from __future__ import annotations

from typing import Final

from dspool_console.dashboard.actions import ACTING
from dspool_console.dashboard.analysis import STUDYING
from dspool_console.dashboard.export import EXPORTING
from dspool_console.dashboard.login import LOGIN
from dspool_console.dashboard.pages import LOOKING

DASHBOARD: Final = (*LOGIN, *LOOKING, *STUDYING, *EXPORTING, *ACTING)

__all__ = ["DASHBOARD"]
