"""After "Program of Thought": the model writes code, and the code is run."""

import os

import dspy
from dspy.primitives.local_interpreter import LocalInterpreter

dspy.configure(
    lm=dspy.LM("openai/gpt-4o-mini", api_base=os.environ["MODEL_URL"], api_key=os.environ["MODEL_KEY"]),
    interpreter_factory=LocalInterpreter,
)

solve = dspy.ProgramOfThought("question -> answer: int")
