"""Programs that the page "Try it" is tried on."""

from __future__ import annotations

import enum
from typing import Any

import dspy
import pydantic


class Tone(enum.Enum):
    friendly = "friendly"
    formal = "formal"


class Order(pydantic.BaseModel):
    number: int
    lines: list[str]


class Typed(dspy.Module):
    """Takes one of everything and tells what arrived."""

    async def aforward(
        self, note: str, tone: Tone, order: Order, count: int = 1, photo: dspy.Image | None = None
    ) -> Any:
        seen = "no photo" if photo is None else photo.url[:22]
        return dspy.Prediction(answer=f"{note}/{tone.value}/{order.number}/{count}/{seen}", lines=order.lines)


class Failing(dspy.Module):
    async def aforward(self, order: str) -> Any:
        raise ValueError(f"order {len(order)} has no line items")
