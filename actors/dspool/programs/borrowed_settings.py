"""DSPy's process-wide settings, lent to a pool in a process that is not its own and given back as they were."""

from __future__ import annotations

import importlib
import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import dspy

from dspool.programs import setup

_lock = threading.Lock()
_borrowers = 0
_kept: dict[str, Any] = {}


@contextmanager
def borrowed_settings(*, cache: bool) -> Iterator[None]:
    """In the block DSPy is configured as in a worker. Whoever may call `dspy.configure` now, may do so in it, too."""
    global _borrowers
    with _lock:
        _borrowers += 1
        if _borrowers == 1:
            _keep()
            _configure(cache)
    try:
        yield
    finally:
        with _lock:
            _borrowers -= 1
            if _borrowers == 0:
                _give_back()


def _settings() -> Any:
    # `dspy.dsp.utils.settings` as an attribute is the object in this module.
    return importlib.import_module("dspy.dsp.utils.settings")


def _keep() -> None:
    settings = _settings()
    _kept.update(
        config=dict(settings.main_thread_config),
        thread=settings.config_owner_thread_id,
        task=settings.config_owner_async_task,
        # Not asked for, if nobody has yet: DSPy would make it, with a directory in the user's home.
        cache=vars(dspy).get("cache"),
        cache_class=dspy.clients.Cache,
        level=logging.getLogger("dspy").level,
        configured=setup._configured,
    )


def _configure(cache: bool) -> None:
    settings = _settings()
    # DSPy takes settings from the first thread only, which is not the one in which a test or its pool runs.
    settings.config_owner_thread_id = settings.config_owner_async_task = None
    setup.configure_dspy(cache=cache, show_content=True)
    settings.config_owner_thread_id, settings.config_owner_async_task = _kept["thread"], _kept["task"]


def _give_back() -> None:
    settings = _settings()
    settings.main_thread_config.clear()
    settings.main_thread_config.update(_kept["config"])
    dspy.clients.Cache = _kept["cache_class"]
    if _kept["cache"] is None:
        del dspy.cache
    else:
        dspy.cache = _kept["cache"]
    logging.getLogger("dspy").setLevel(_kept["level"])
    setup._configured = _kept["configured"]
    _kept.clear()


__all__ = ["borrowed_settings"]
