"""A module that configures nothing."""

from typing import Any

from script_like import programs
from script_like.models import SaysItsName


class Reports(programs.Reports):
    pass


class OwnModel(programs.Answers):
    def __init__(self) -> None:
        super().__init__()
        self.set_lm(SaysItsName("set on the module"))

    def forward(self, question: str) -> Any:
        return self.answer(question=question)
