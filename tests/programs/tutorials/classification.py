"""After "Classification" and "Saving and Loading": a Literal of labels, with demonstrations from a saved state."""

import os
from pathlib import Path
from typing import Literal

import dspy

CLASSES = ["card_arrival", "lost_card", "exchange_rate"]

signature = dspy.Signature(
    "text -> label", "Classify the message of a customer of a bank."
).with_updated_fields("label", type_=Literal[tuple(CLASSES)])
classify = dspy.ChainOfThought(signature)
classify.load(Path(__file__).with_name("classification.json"))

dspy.configure(
    lm=dspy.LM("openai/gpt-4o-mini", api_base=os.environ["MODEL_URL"], api_key=os.environ["MODEL_KEY"]),
    adapter=dspy.JSONAdapter(),
)
