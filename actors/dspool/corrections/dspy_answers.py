"""How long DSPy's repair of a model's answer may take: it runs on the event loop, and callers choose the answers.

A text with broken quotes takes the repair a step for each pair of its characters: 3 s for 6 kB. Answers of 9 kB with
the usual mistakes take it 1 to 7 ms, with the wrong quotes throughout 22.
"""

from __future__ import annotations

import time
from contextvars import ContextVar
from typing import Any, Final

MAX_S: Final = 0.028
"""Of the thread's processor time: how much a step costs depends on the text, and how much on the machine.

DSPy's searches around the repair take up to 15 ms for an answer as long as one may be: 50 is what all may take."""
_LOOK_EVERY: Final = 250
"""Steps between two looks at the clock, each a look at a character or a search for one."""

_TOO_MUCH: Final = "the answer is no JSON, and too broken to be repaired in time"


class TooMuchToRepair(ValueError):
    """It would take more than `MAX_S`."""


_end_s: ContextVar[float | None] = ContextVar("dspool_repair_end_s", default=None)


class one_answer:
    """All repairs within share `MAX_S`: an answer is repaired as a whole, then once for each of its fields."""

    __slots__ = ("_token",)

    def __enter__(self) -> None:
        self._token = _end_s.set(time.thread_time() + MAX_S)

    def __exit__(self, *raised: object) -> None:
        _end_s.reset(self._token)


def within_time(parser: Any) -> Any:
    """`parser`, json_repair's, which stops when its time is over."""

    get_char_at = parser.get_char_at

    class Timed(parser):  # type: ignore[misc]
        __wrapped__ = parser

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self._end_s = _end_s.get() or time.thread_time() + MAX_S
            self._steps = _LOOK_EVERY

        def _look(self) -> None:
            self._steps = _LOOK_EVERY
            if time.thread_time() > self._end_s:
                raise TooMuchToRepair(_TOO_MUCH)

        def get_char_at(self, count: int = 0) -> Any:
            # `super()` here would take longer than what is counted.
            self._steps -= 1
            if self._steps < 0:
                self._look()
            return get_char_at(self, count)

        # One search may go through all of the text: it is a look each time.
        def skip_to_character(self, *args: Any, **kwargs: Any) -> Any:
            self._look()
            return super().skip_to_character(*args, **kwargs)

        def scroll_whitespaces(self, *args: Any, **kwargs: Any) -> Any:
            self._look()
            return super().scroll_whitespaces(*args, **kwargs)

    return Timed


__all__ = ["MAX_S", "TooMuchToRepair", "one_answer", "within_time"]
