"""Programs under an adapter of their own, and under one that DSPy cannot stream."""

from typing import Any

import dspy

from script_like import programs
from script_like.models import SaysItsName


class Terse(dspy.ChatAdapter):
    pass


dspy.configure(lm=SaysItsName("adapted"), adapter=Terse())


class Answers(programs.Answers):
    pass


class InTwoSteps(programs.Answers):
    def forward(self, question: str) -> Any:
        with dspy.context(adapter=dspy.TwoStepAdapter(SaysItsName("extracted"))):
            return self.answer(question=question)
