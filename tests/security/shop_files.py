"""A package as users write it, with what callers must not reach in it: written to a directory, so that each test
sees for itself what was run."""

from __future__ import annotations

import textwrap
from pathlib import Path

MODULES = {
    "shop/__init__.py": """
        import functools
        import os
        import subprocess
        from pathlib import Path
        from subprocess import getoutput

        import dspy
        import pydantic
        from dspy import ChainOfThought

        from outside import Foreign, Liar, foreign_program
        from outside import foreign_program as _kept
        from shop.inner import Inner

        CANARY = Path(os.environ["SHOP_CANARY"])


        def mark(word: str = "called", **more) -> str:
            with CANARY.open("a") as file:
                file.write(f"{word}\\n")
            return word


        class Asks(dspy.Module):
            def __init__(self, mark: str = "!"):
                super().__init__()
                self.mark = mark
                self.answer = dspy.Predict("question -> answer")

            def forward(self, question: str):
                return dspy.Prediction(answer=self.mark)


        class Marks(dspy.Module):
            def __init__(self, word: str = "made", **more):
                super().__init__()
                mark(f"{word} {sorted(more)}")

            def forward(self, **inputs):
                return dspy.Prediction(inputs=sorted(inputs))


        class Takes(dspy.Module):
            def __init__(self, signature: str = "question -> answer", _hidden: str = ""):
                super().__init__()
                self.answer = dspy.Predict(signature)

            def forward(self, **inputs):
                return self.answer(**inputs)


        class Tasks(dspy.Module):
            # Its argument becomes a signature.
            def __init__(self, task: str = "question -> answer"):
                super().__init__()
                self.answer = dspy.Predict(task)

            def forward(self, question: str):
                return self.answer(question=question)


        class Dynamic(dspy.Module):
            def forward(self, question: str, wanted: str):
                return dspy.Predict(f"question -> {wanted}")(question=question)


        class Price(pydantic.BaseModel):
            euros: int


        class Plain(dspy.ChainOfThought):
            pass


        class Optional(dspy.Module):
            def forward(self, question: str, lm=None, _trace=None):
                return dspy.Prediction(answer=str((lm, _trace)))


        class Crawls(dspy.Module):
            def __init__(self, api_base: str = ""):
                super().__init__()
                mark(api_base)

            def forward(self, base_url: str):
                return dspy.Prediction(answer=base_url)


        class Required(dspy.Module):
            def forward(self, question: str, config):
                return dspy.Prediction(answer="")


        class Nothing(dspy.Module):
            pass


        class Overrides(dspy.ChainOfThought):
            def __init__(self):
                super().__init__("question -> answer")

            def forward(self, question: str, style: str = ""):
                return dspy.Prediction(answer=style)


        class Chain(dspy.Module):
            def __init__(self):
                super().__init__()
                self.first = dspy.Predict("question -> context")
                self.second = dspy.ChainOfThought("context, question -> answer")
                self.second._compiled = True

            def forward(self, style: str = "", **inputs):
                return dspy.Prediction(answer=sorted(inputs))


        class _Private(dspy.Module):
            def forward(self):
                return dspy.Prediction()


        def make_asks(mark: str, **more):
            return Asks(mark)


        def later_program():
            return type("Later", (dspy.Module,), {"forward": lambda self: dspy.Prediction()})


        class Callable:
            def __call__(self, *args, **kwargs):
                return mark("instance called")


        cot = dspy.ChainOfThought("question -> answer")
        asks = Asks("?")
        agent = dspy.ReAct("question -> answer", tools=[mark])
        best = dspy.BestOfN(module=dspy.ChainOfThought("question -> answer"), N=1, reward_fn=mark, threshold=0.0)
        predict = dspy.Predict("question -> answer")
        partial = functools.partial(mark, "partial")
        call_me = Callable()
        lambda_ = lambda: mark("lambda")
        Made = later_program()
    """,
    "shop/inner.py": """
        import dspy
        import pydantic


        class Cost(pydantic.BaseModel):
            euros: int


        class Inner(dspy.Module):
            def forward(self, question: str):
                return dspy.Prediction(answer="inner")
    """,
    "shop/_private.py": """
        import shop

        shop.mark("private module imported")
    """,
    "shop/__main__.py": """
        import shop

        shop.mark("main run")
    """,
    "shop/leaves.py": """
        import sys

        sys.exit(3)
    """,
    "shopping.py": """
        import shop

        shop.mark("shopping imported")
    """,
    "told.py": """
        import shop

        shop.mark("imported by a text")


        class T:
            pass
    """,
    "outside.py": """
        import dspy


        class Foreign(dspy.Module):
            def forward(self):
                return dspy.Prediction(answer="foreign")


        class Liar(dspy.Module):
            __module__ = "shop"
            __qualname__ = "Asks"

            def forward(self):
                return dspy.Prediction(answer="lie")


        foreign_program = Foreign()
    """,
}


def write_shop(directory: Path) -> None:
    for name, text in MODULES.items():
        file = directory / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(textwrap.dedent(text))
