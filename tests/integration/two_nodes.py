"""A cluster of two nodes in a directory of its own with a forked actor on each; prints the processes, then ends."""

import os
import secrets
import sys

# `Cluster` writes its address into Ray's default directory, and a cluster without a token writes one into the home.
os.environ |= {"RAY_TMPDIR": sys.argv[1], "RAY_AUTH_TOKEN": secrets.token_hex(32)}

import ray
from ray.cluster_utils import Cluster

from dspool.runtime import forkserver


def main() -> None:
    cluster = Cluster()
    for number in range(2):
        cluster.add_node(num_cpus=1, include_dashboard=False, resources={f"node{number}": 1})
    ray.init(address=cluster.address, log_to_driver=False)

    class Held:
        def pids(self) -> tuple[int, int, str]:
            return os.getpid(), os.getppid(), os.environ["_DSPOOL_START"]

    held = ray.remote(Held)
    options = {"num_cpus": 0, "runtime_env": {"py_executable": forkserver.command(())}}
    actors = [held.options(resources={f"node{number}": 1}, **options).remote() for number in range(2)]
    found = ray.get([actor.pids.remote() for actor in actors])
    assert [how for _, _, how in found] == ["fork", "fork"], found
    assert found[0][1] != found[1][1], found
    ray.shutdown()
    cluster.shutdown()
    print(*(pid for one in found for pid in one[:2]))


main()
