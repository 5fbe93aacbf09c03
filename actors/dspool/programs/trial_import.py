"""Imports what it is told, in a process of its own, and says what came of it: `python -P -m` of this module.

It reads a JSON array of paths (`package.module:name`, or `package.module`) from stdin, and writes one line for each
that it begins and one for each that fails to what was its stdout; what the modules themselves print goes to stderr.
"""

from __future__ import annotations

import json
import os
import sys

from dspool.errors import PoolError
from dspool.programs.imports import binding
from dspool.raised import own


def main() -> None:
    paths: list[str] = json.load(sys.stdin)
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    own(path.partition(":")[0] for path in paths)
    for path in paths:
        print(json.dumps({"begins": path}), file=answers, flush=True)
        module, _, name = path.partition(":")
        try:
            binding(module, name, path, listed=True)
        except PoolError as failed:
            print(json.dumps({"fails": path, **failed.to_wire()}), file=answers, flush=True)
    print(json.dumps({"ends": True}), file=answers, flush=True)
    # What the modules started (threads, pools) need not end.
    os._exit(0)


if __name__ == "__main__":
    main()
