"""DSPy's process-wide settings, made once."""

from __future__ import annotations

import logging
import threading

import dspy

from dspool.errors import ConfigError
from dspool.programs.adapters import adapter_named
from dspool.programs.models.operation import AnswerCache

_lock = threading.Lock()
_configured = False


def configure_dspy(*, cache: bool, show_content: bool = False) -> None:
    """Configure DSPy for a long-lived process that serves several users; only the first call does anything.

    DSPy lets only the thread and task that configured it first do so again, so everything that can differ between
    operations goes into a context.
    """
    global _configured
    with _lock:
        if _configured:
            return
        dspy.configure(
            adapter=adapter_named("chat"),
            # Both grow by kilobytes a call and keep user data.
            disable_history=True,
            trace=None,
            # Our own check comes before, with better messages.
            warn_on_type_mismatch=False,
        )
        # Caches that programs configure themselves get this class too.
        dspy.clients.Cache = AnswerCache
        # Nothing on disk: a file would outlive the process, and DSPy reads it with pickle.
        dspy.configure_cache(enable_disk_cache=False, enable_memory_cache=cache, memory_max_entries=10_000)
        if isinstance(dspy.cache, AnswerCache):
            dspy.cache.keeps_lms = False
        if cache and not isinstance(dspy.cache, AnswerCache):
            raise ConfigError("cache: true needs DSPy 3.4: with this one, callers would share their answers")
        if not show_content:
            # Its warnings quote prompts and answers, and its errors (of dspy.Parallel, for one) the inputs.
            logging.getLogger("dspy").setLevel(logging.CRITICAL)
        _configured = True
