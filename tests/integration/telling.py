"""Programs and a warm-up step for the tests of what a pool tells about itself."""

from __future__ import annotations

import datetime
import logging
import math
import os
from typing import Any

import dspy
import pydantic


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


class Person(pydantic.BaseModel):
    name: str
    born: datetime.date


class Typed(dspy.Module):
    """Says what it was given, and returns what is no JSON by itself."""

    async def aforward(
        self, person: Person, picture: dspy.Image | None = None, score: float = 0.5, odd: bool = False
    ) -> dict[str, Any]:
        score = math.nan if odd else score
        given = [type(person.born).__name__, "" if picture is None else picture.url]
        return {"given": given, "person": person, "score": score, "long": 3**100, "half": "\ud83d"}


def with_key() -> None:
    """A warm-up step that gives the worker the key of a model."""
    os.environ["NOTED_KEY"] = os.environ["NOTED_DIR"].rpartition("/")[2] + "-key"
