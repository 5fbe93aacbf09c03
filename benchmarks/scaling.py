"""What size costs, and where each curve bends. The study is in `studies/scaling/`."""

import asyncio
import sys

from benchmarks.studies.scaling.study import main

if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
