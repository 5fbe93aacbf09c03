"""Where Ray's dashboard finds panels: it asks for Grafana and Prometheus at addresses that its variables name.

The routes below `PREFIX` that answer in their place are the console's (`dspool_console.ray_panels`).
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Final

PREFIX: Final = "/grafana"


def environment(host: str, port: int, environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Variables for the process that starts Ray, so that its dashboard shows the panels of the service at `host`.

    Empty if one of them is set already: then there is a real Grafana or Prometheus.
    """
    if host in ("0.0.0.0", "::"):
        host = "127.0.0.1"
    url = f"http://{f'[{host}]' if ':' in host else host}:{port}{PREFIX}"
    names = ("RAY_GRAFANA_HOST", "RAY_GRAFANA_IFRAME_HOST", "RAY_PROMETHEUS_HOST")
    # One real one and ours in the other's place would show neither right.
    return {} if any(name in environ for name in names) else dict.fromkeys(names, url)
