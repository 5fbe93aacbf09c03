"""After "Image Generation Prompting": a picture in, words out."""

import os

import dspy

dspy.configure(
    lm=dspy.LM("openai/gpt-4o-mini", api_base=os.environ["MODEL_URL"], api_key=os.environ["MODEL_KEY"])
)


class Caption(dspy.Module):
    def __init__(self):
        super().__init__()
        self.describe = dspy.Predict("image: dspy.Image, style: str -> caption: str")

    def forward(self, image: dspy.Image, style: str = "plain"):
        return self.describe(image=image, style=style)
