"""A driver with a forked actor; says its process and how it was started, and ends with its standard input."""

import os
import sys

import ray

from dspool.runtime import forkserver


def main() -> None:
    ray.init(address=sys.argv[1], log_to_driver=False)

    class Held:
        def start(self) -> tuple[int, str]:
            return os.getpid(), os.environ["_DSPOOL_START"]

    options = {"num_cpus": 0, "runtime_env": {"py_executable": forkserver.command()}}
    held = ray.remote(Held).options(**options).remote()
    print(*ray.get(held.start.remote()), flush=True)
    sys.stdin.read()
    ray.shutdown()


main()
