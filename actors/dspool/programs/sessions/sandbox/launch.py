"""Becomes another program, within limits: `python -I -S launch.py PARENT MEMORY_BYTES CPU_S COMMAND...`

Deno decides what the code may reach. This bounds what it may use, and ends it with its parent, however that ends.
"""

import ctypes
import os
import resource
import signal
import sys

_PDEATHSIG = 1


def main() -> None:
    parent, memory, seconds = (int(text) for text in sys.argv[1:4])
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        return  # the parent died before prctl, so no signal will come
    # Not RLIMIT_AS: V8 reserves far more address space than it uses.
    resource.setrlimit(resource.RLIMIT_DATA, (memory, memory))
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.execv(sys.argv[4], sys.argv[4:])


if __name__ == "__main__":
    main()
