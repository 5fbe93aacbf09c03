"""DSPy's process-wide settings, made once."""

from __future__ import annotations

import logging
import threading

import dspy

from dspool.errors import ConfigError
from dspool.programs.adapters import adapter_named
from dspool.programs.models.operation import AnswerCache

_lock = threading.Lock()
_done = False


def configure_dspy(*, cache: bool, show_content: bool = False) -> None:
    """Configure DSPy for a long-lived process that serves several users; only the first call does anything.

    DSPy lets only the thread and task that configured first do so again, hence everything that can differ between
    operations goes into a context instead.
    """
    global _done
    with _lock:
        if _done:
            return
        dspy.configure(
            adapter=adapter_named("chat"),
            # Both grow by kilobytes a call and keep user data.
            disable_history=True,
            trace=None,
            # Inputs are checked before, in better words.
            warn_on_type_mismatch=False,
        )
        # Of this class are also the caches that programs configure themselves.
        dspy.clients.Cache = AnswerCache
        # Nothing on disk: a file would outlive the process, and is read with pickle.
        dspy.configure_cache(enable_disk_cache=False, enable_memory_cache=cache, memory_max_entries=10_000)
        if cache and not isinstance(dspy.cache, AnswerCache):
            raise ConfigError("cache: true needs DSPy 3.4: with this one, callers would share their answers")
        if not show_content:
            # Its warnings quote prompts and answers, and its errors (of dspy.Parallel, for one) the inputs.
            logging.getLogger("dspy").setLevel(logging.CRITICAL)
        _done = True
