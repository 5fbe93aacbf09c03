"""The session store over its actor: what it asks for is there, and whoever only asks loads no SQL."""

from __future__ import annotations

import inspect
import subprocess
import sys

from dspool.runtime.remote_store import RemoteStore
from dspool.store.store import SessionStore

LOADED = """
import importlib, sys
from dspool.runtime.forkserver import preload
for module in (*preload.BASE, *preload.OFTEN, "dspool.runtime.store", "dspool.runtime.lifecycle"):
    importlib.import_module(module)
print(*sorted({name.partition(".")[0] for name in sys.modules} & {"sqlalchemy", "litellm", "textual", "IPython"}))
"""


def test_each_question_is_one_that_the_store_answers():
    asked = {name for name in vars(RemoteStore) if not name.startswith("_")}
    assert asked
    for name in asked:
        assert inspect.iscoroutinefunction(getattr(RemoteStore, name))
        assert getattr(RemoteStore, name).__name__ == name
        assert inspect.iscoroutinefunction(getattr(SessionStore, name)), name


def test_what_workers_are_forked_from_holds_nothing_that_no_worker_needs():
    said = subprocess.run(
        [sys.executable, "-c", LOADED], capture_output=True, text=True, check=True, timeout=300
    )
    assert said.stdout.strip() == ""
