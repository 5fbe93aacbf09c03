"""What does a worker cost to start and to keep, forked and executed? The study is in `studies/startup/`."""

import sys

from benchmarks.studies.startup.study import main

if __name__ == "__main__":
    sys.exit(main())
