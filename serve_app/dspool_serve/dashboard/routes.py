"""All routes of the dashboard. They are no part of the API: the OpenAPI document does not name them."""

from __future__ import annotations

from typing import Final

from dspool_serve.dashboard.acting import ACTING
from dspool_serve.dashboard.doors import DOORS
from dspool_serve.dashboard.exporting import EXPORTING
from dspool_serve.dashboard.looking import LOOKING
from dspool_serve.dashboard.studying import STUDYING

DASHBOARD: Final = (*DOORS, *LOOKING, *STUDYING, *EXPORTING, *ACTING)

__all__ = ["DASHBOARD"]
