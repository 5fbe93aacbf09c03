"""A team's programs that fail: in an operation, and while they are loaded."""

from __future__ import annotations

import logging
import os
from typing import NoReturn

import dspy

log = logging.getLogger(__name__)
print("shop is imported")


class Answer(dspy.Module):
    def forward(self, order: str) -> NoReturn:
        log.info("looking for an order")
        print("looking", "for its items")
        raise ValueError(f"order has no line items: {order}")


class Unset(dspy.Module):
    def __init__(self) -> None:
        self.key = os.environ["PINECONE_API_KEY_OF_NOBODY"]

    def forward(self) -> dict[str, str]:
        return {}
