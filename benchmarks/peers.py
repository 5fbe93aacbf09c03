"""What dspool costs and gives beside what else one would serve a DSPy program with: `studies/peers/`."""

import sys

from benchmarks.studies.peers.study import main

if __name__ == "__main__":
    sys.exit(main())
