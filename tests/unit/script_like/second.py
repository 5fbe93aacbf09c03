"""Another application's module, with another model."""

import threading
from typing import Any

import dspy

from script_like import programs
from script_like.models import SaysItsName

dspy.configure(lm=SaysItsName("second"))


class Answers(programs.Answers):
    pass


class Configures(dspy.Module):
    """Configures when it is made."""

    def __init__(self, name: str = "mine") -> None:
        super().__init__()
        dspy.configure(lm=SaysItsName(name))
        self.seen_when_made = dspy.settings.lm.model
        self.answer = dspy.Predict("question -> answer")

    def forward(self, question: str) -> Any:
        found = self.answer(question=question).answer
        return dspy.Prediction(answer=f"{found}, made under {self.seen_when_made}")


class ConfiguresWhileRunning(programs.Answers):
    def forward(self, question: str) -> Any:
        before = self.answer(question=question).answer
        if question == "change":
            dspy.configure(lm=SaysItsName("changed"), trace=[], usage_tracker=None)
        return dspy.Prediction(answer=f"{before}, {self.answer(question=question).answer}")


class ConfiguresInAThread(programs.Answers):
    def forward(self, question: str) -> Any:
        failed = []

        def change() -> None:
            try:
                dspy.configure(lm=SaysItsName("threaded"))
            except RuntimeError as refused:
                failed.append(refused)

        thread = threading.Thread(target=change)
        thread.start()
        thread.join()
        return dspy.Prediction(answer=self.answer(question=question).answer)


made: list[str] = []


async def setup_later() -> None:
    made.append("once")
    dspy.configure(lm=SaysItsName("from an async setup"))


def setup() -> None:
    dspy.configure(lm=SaysItsName("from setup"), max_errors=7)
