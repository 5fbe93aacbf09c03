"""A retriever's index as users have one: built when its module is imported, read by every operation."""

from __future__ import annotations

from typing import Any

import dspy
import numpy

INDEX_MB = 64
INDEX = numpy.ones(INDEX_MB * 2**17)


class Lookup(dspy.Module):
    def forward(self, place: int) -> Any:
        return dspy.Prediction(found=float(INDEX[place]), sum=float(INDEX.sum()))
