"""How well does the pool follow its load, and at what cost? The study is in `studies/sizing/`."""

import sys

from benchmarks.studies.sizing.study import main

if __name__ == "__main__":
    sys.exit(main())
