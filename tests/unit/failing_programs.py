"""What people's own code raises, each in the way in which people do it."""

from __future__ import annotations

import json
import os
from enum import Enum
from typing import Any, NoReturn

import dspy
import pydantic

SECRET = "my aunt's maiden name is Plumtree"


class OrderError(Exception):
    pass


class Colour(Enum):
    RED = "red"


class Line(pydantic.BaseModel):
    price: int


class Order(pydantic.BaseModel):
    number: int
    lines: list[Line] = []
    notes: dict[str, int] = {}


def in_words() -> NoReturn:
    raise ValueError("order 4711 has no line items")


def of_own_class() -> NoReturn:
    raise OrderError("order 4711 is closed")


def asserted() -> None:
    count = 0
    assert count, "no orders today"


def exits() -> None:
    exit_code = "no orders today"
    import sys

    sys.exit(exit_code)


def missing_variable() -> str:
    return os.environ["PINECONE_API_KEY_OF_NOBODY"]


def missing_key() -> Any:
    return {}["line_items"]


def missing_data_key() -> Any:
    return {}[SECRET]


def wrong_attribute() -> Any:
    return {}.line_items  # type: ignore[attr-defined]


def wrong_number() -> int:
    return int(SECRET)


def wrong_colour() -> Colour:
    return Colour(SECRET)


def wrong_json() -> Any:
    return json.loads("{" + SECRET)


def wrong_order() -> Order:
    return Order.model_validate({"number": SECRET, "lines": [{"price": SECRET}], "notes": {SECRET: SECRET}})


def missing_file() -> Any:
    return open(f"/nowhere/{SECRET}")


def undecodable() -> str:
    return b"\xff".decode()


def chained() -> NoReturn:
    try:
        wrong_number()
    except ValueError as failed:
        failed.add_note("while reading the order")
        raise OrderError("the order cannot be read") from failed


def grouped() -> NoReturn:
    raise ExceptionGroup("two orders", [ValueError("first"), OrderError("second")])


def quoting(question: str) -> NoReturn:
    raise ValueError(f"bad question {question[:20]!r}, and 'Pigs' again: {question}")


def surrogate() -> NoReturn:
    raise ValueError("half \ud800 a character\x00")


def huge() -> NoReturn:
    raise ValueError("x" * 10_000_000)


def unspeakable() -> NoReturn:
    class Unspeakable(Exception):
        def __str__(self) -> str:
            raise RuntimeError(SECRET)

    raise Unspeakable


def deep(left: int = 5000) -> NoReturn:
    deep(left - 1)
    raise AssertionError


class Blocking(dspy.Module):
    def forward(self, question: str) -> Any:
        quoting(question)


class Awaiting(dspy.Module):
    async def aforward(self, question: str) -> Any:
        quoting(question)
