"""After "Multi-Hop Retrieval": search, take notes, search again."""

import os

import dspy

lm = dspy.LM("openai/llama-3", api_base=os.environ["MODEL_URL"], api_key=os.environ["MODEL_KEY"])
gpt4o = dspy.LM("openai/gpt-4o", api_base=os.environ["MODEL_URL"], api_key=os.environ["MODEL_KEY"])
dspy.configure(lm=lm)

DOCS = {"Ada Lovelace": "Ada Lovelace wrote a program.", "Alan Turing": "Alan Turing wrote a paper."}


def search(query: str, k: int) -> list[str]:
    found = sorted(DOCS, key=lambda title: -sum(word in DOCS[title] for word in query.split()))
    return [f"{title} | {DOCS[title]}" for title in found[:k]]


class Hop(dspy.Module):
    def __init__(self, num_docs=2, num_hops=2):
        self.num_docs, self.num_hops = num_docs, num_hops
        self.generate_query = dspy.ChainOfThought("claim, notes -> query")
        self.append_notes = dspy.ChainOfThought(
            "claim, notes, context -> new_notes: list[str], titles: list[str]"
        )
        self.append_notes.set_lm(gpt4o)

    def forward(self, claim: str) -> dspy.Prediction:
        notes, titles = [], []
        for _ in range(self.num_hops):
            query = self.generate_query(claim=claim, notes=notes).query
            context = search(query, k=self.num_docs)
            prediction = self.append_notes(claim=claim, notes=notes, context=context)
            notes.extend(prediction.new_notes)
            titles.extend(prediction.titles)
        return dspy.Prediction(notes=notes, titles=list(set(titles)))
