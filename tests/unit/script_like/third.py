"""Modules that take their settings from another one."""

from typing import Any

import dspy

from . import shared

seen_at_import = dspy.settings.lm.model if dspy.settings.lm else None
# As instrumentations do it.
dspy.configure(callbacks=[*dspy.settings.callbacks, shared.Noting()])


class Answers(dspy.Module):
    def __init__(self) -> None:
        super().__init__()
        self.answer = dspy.Predict("question -> answer")

    async def aforward(self, question: str) -> Any:
        found = await self.answer.acall(question=question)
        return dspy.Prediction(answer=found.answer, callbacks=len(dspy.settings.callbacks))
