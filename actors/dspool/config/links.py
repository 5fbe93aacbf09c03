"""Variables that Kubernetes and Docker set in every container for each service beside it.

A service named `dspool` gives `DSPOOL_PORT=tcp://10.96.3.4:8000` and a dozen others, which are nobody's settings. Name
and value decide together: `DSPOOL_PORT=9000` is a mistake of somebody who means `DSPOOL_SERVICE__PORT`.
"""

from __future__ import annotations

import ipaddress
import logging
import re
from collections.abc import Callable
from functools import cache
from typing import Final

log = logging.getLogger(__name__)

_URL: Final = re.compile(r"(tcp|udp|sctp)://\S+:\d+")
_PROTOCOL: Final = re.compile("tcp|udp|sctp")
_NUMBER: Final = re.compile(r"\d{1,5}")
_CONTAINER: Final = re.compile(r"/\S+/\S+")


def _is_address(value: str) -> bool:
    try:
        ipaddress.ip_address(value)
    except ValueError:
        return False
    return True


_FORMS: Final[tuple[tuple[re.Pattern[str], Callable[[str], object]], ...]] = (
    (re.compile(r"\ADSPOOL\w*_SERVICE_HOST"), _is_address),
    # As long as names of services are, and up to the first one for good: any length takes the square of it.
    (re.compile(r"\ADSPOOL(?>\w{0,80}?_SERVICE_PORT)(_\w{1,80})?"), _NUMBER.fullmatch),
    (re.compile(r"\ADSPOOL\w*_PORT(_\d+_(TCP|UDP|SCTP))?"), _URL.fullmatch),
    (re.compile(r"\ADSPOOL\w*_PORT_\d+_(TCP|UDP|SCTP)_PROTO"), _PROTOCOL.fullmatch),
    (re.compile(r"\ADSPOOL\w*_PORT_\d+_(TCP|UDP|SCTP)_PORT"), _NUMBER.fullmatch),
    (re.compile(r"\ADSPOOL\w*_PORT_\d+_(TCP|UDP|SCTP)_ADDR"), _is_address),
    (re.compile(r"\ADSPOOL\w*_PORT_\d+_(TCP|UDP|SCTP)_(START|END)"), _URL.fullmatch),
    (re.compile(r"\ADSPOOL\w*_PORT_\d+_(TCP|UDP|SCTP)_PORT_(START|END)"), _NUMBER.fullmatch),
    (re.compile(r"\ADSPOOL\w*_NAME"), _CONTAINER.fullmatch),
    # Whatever the linked container has in its environment.
    (re.compile(r"\ADSPOOL(_\w{1,80}?)?_ENV_\w+"), lambda value: True),
)
"""The last four are Docker's (`--link`)."""


def is_service_link(name: str, value: str | None) -> bool:
    """Whether an orchestrator set this variable to tell where a service is."""
    return value is not None and any(form.fullmatch(name) and fits(value) for form, fits in _FORMS)


@cache
def say_ignored(names: frozenset[str]) -> None:
    """Log these variables as ignored; once a process, however often its configuration is read."""
    log.warning(
        "ignored %s: an orchestrator sets such variables for services; settings of dspool have two underscores "
        "between a group and its key (DSPOOL_SERVICE__PORT)",
        ", ".join(sorted(names)),
    )


__all__ = ["is_service_link", "say_ignored"]
