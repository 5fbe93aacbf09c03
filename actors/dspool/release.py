"""Which version this is. A module of its own: whoever asks loads nothing else."""

from __future__ import annotations

from typing import Final

VERSION: Final = "0.2.0"
