"""`python -m tests.simulation --seeds 100 --json`; see `cli`."""

import os
import sys
import traceback

from tests.simulation import cli

if cli.INSIDE not in sys.argv:
    sys.exit(cli.main())

from tests.simulation import world

world.install()

from tests.simulation import disk  # noqa: E402

disk.install()
try:
    status = cli.inside(sys.argv[sys.argv.index(cli.INSIDE) + 1 :])
except BaseException:
    traceback.print_exc()
    status = 1
sys.stdout.flush()
# Not `sys.exit`: Python waits for threads by clocks that stand still now.
os._exit(status)
