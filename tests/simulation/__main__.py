import os
import sys
import traceback

from tests.simulation import world

world.install()

from tests.simulation import disk  # noqa: E402

disk.install()

from tests.simulation.cli import main  # noqa: E402

try:
    status = main()
except BaseException:
    traceback.print_exc()
    status = 1
sys.stdout.flush()
# Not `sys.exit`: Python waits for threads by clocks that stand still now.
os._exit(status)
