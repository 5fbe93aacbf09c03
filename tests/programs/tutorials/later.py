"""After "Async" and "Streaming": two questions at once, and a status as it goes."""

import asyncio
import os

import dspy

dspy.configure(
    lm=dspy.LM("openai/gpt-4o-mini", api_base=os.environ["MODEL_URL"], api_key=os.environ["MODEL_KEY"]),
    async_max_workers=4,
)


class Summaries(dspy.Module):
    def __init__(self):
        super().__init__()
        self.title = dspy.Predict("text -> title")
        self.summary = dspy.ChainOfThought("text -> summary")
        self.review = dspy.asyncify(dspy.Predict("title, summary -> verdict"))

    async def aforward(self, text: str):
        title, summary = await asyncio.gather(self.title.acall(text=text), self.summary.acall(text=text))
        review = await self.review(title=title.title, summary=summary.summary)
        return dspy.Prediction(title=title.title, summary=summary.summary, verdict=review.verdict)
