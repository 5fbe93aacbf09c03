"""Doubles of the unit tests (`http_doubles`, `calling_programs`, ...) serve here too."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "unit"))
