"""Public doubles for time and for faults: `from dspool.testing import FakeClock`."""

from dspool.testing.doubles import FakeClock, FakeRuntime, FakeStore, FakeWorker
from dspool.testing.host import ScriptedHost
from dspool.testing.lm_server import LMServer

__all__ = ["FakeClock", "FakeRuntime", "FakeStore", "FakeWorker", "LMServer", "ScriptedHost"]
