"""Programs and a warm-up step for the tests of what a pool tells about itself."""

from __future__ import annotations

import logging
import os
from typing import Any

import dspy


class Logging(dspy.Module):
    """Writes a line into the log of its worker."""

    def forward(self, text: str) -> Any:
        logging.getLogger("of.a.library").warning("%s from a program", text)
        return dspy.Prediction(text=text)


class Failing(dspy.Module):
    """Fails with what it was given."""

    def forward(self, text: str) -> Any:
        raise ValueError(f"cannot work with {text}")


class FailingLater(dspy.Module):
    """The same on the event loop, from inside another exception."""

    async def aforward(self, text: str) -> Any:
        try:
            raise KeyError(text)
        except KeyError as missing:
            raise RuntimeError(f"no {text}") from missing


def with_key() -> None:
    """A warm-up step that gives the worker the key of a model."""
    os.environ["NOTED_KEY"] = os.environ["NOTED_DIR"].rpartition("/")[2] + "-key"
