"""A finished program, and one whose callback fails."""

import dspy

import script_like.shared as _shared
from script_like.models import Broken

with dspy.context(max_errors=1):
    seen_in_a_context = dspy.settings.max_errors

program = dspy.Predict("question -> answer")
notes = _shared.notes


class Traced(dspy.Predict):
    def __init__(self) -> None:
        super().__init__("question -> answer", callbacks=[Broken()])
