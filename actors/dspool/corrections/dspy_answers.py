"""How much work DSPy's repair of a model's answer may be: it runs on the event loop, and callers choose the answers.

A text with broken quotes takes the repair a step for each pair of its characters: 3 s for 6 kB. Real answers take one
or two for each character.
"""

from __future__ import annotations

from contextvars import ContextVar
from typing import Any, Final

MAX_STEPS: Final = 30_000
"""Each a look at a character or a search for one: under a microsecond, so all of them stay below 50 ms."""


_TOO_MUCH: Final = "the answer is no JSON, and too broken to be repaired in time"


class TooMuchToRepair(ValueError):
    """It would take more than `MAX_STEPS`."""


_left: ContextVar[list[int] | None] = ContextVar("dspool_repair_steps", default=None)


class one_answer:
    """All repairs within share `MAX_STEPS`: an answer is repaired as a whole, then once for each of its fields."""

    __slots__ = ("_token",)

    def __enter__(self) -> None:
        self._token = _left.set([MAX_STEPS])

    def __exit__(self, *raised: object) -> None:
        _left.reset(self._token)


def counting_steps(parser: Any) -> Any:
    """`parser`, json_repair's, which stops when it has used up the steps."""

    get_char_at = parser.get_char_at

    class Counting(parser):  # type: ignore[misc]
        __wrapped__ = parser

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self._steps = _left.get() or [MAX_STEPS]

        def _step(self) -> None:
            self._steps[0] -= 1
            if self._steps[0] < 0:
                raise TooMuchToRepair(_TOO_MUCH)

        def get_char_at(self, count: int = 0) -> Any:
            # `_step` and `super()` here would take longer than what is counted.
            steps = self._steps
            steps[0] -= 1
            if steps[0] < 0:
                raise TooMuchToRepair(_TOO_MUCH)
            return get_char_at(self, count)

        def skip_to_character(self, *args: Any, **kwargs: Any) -> Any:
            self._step()
            return super().skip_to_character(*args, **kwargs)

        def scroll_whitespaces(self, *args: Any, **kwargs: Any) -> Any:
            self._step()
            return super().scroll_whitespaces(*args, **kwargs)

    return Counting


__all__ = ["MAX_STEPS", "TooMuchToRepair", "counting_steps", "one_answer"]
