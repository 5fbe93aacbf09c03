"""After "Retrieval-Augmented Generation": a corpus, an embedder, and a program that answers from what it finds."""

import os

import dspy
import numpy as np

lm = dspy.LM("openai/gpt-4o-mini", api_base=os.environ["MODEL_URL"], api_key=os.environ["MODEL_KEY"])
dspy.configure(lm=lm)

corpus = [
    "Paris is the capital of France.",
    "Linux is a kernel that Linus Torvalds wrote.",
    "A high memory zone exists on 32-bit systems.",
]


def embed(texts: list[str]) -> np.ndarray:
    """Letters as an embedding: enough to tell these texts apart."""
    return np.array(
        [[text.lower().count(chr(97 + n)) for n in range(26)] for text in texts], dtype=np.float32
    )


search = dspy.retrievers.Embeddings(embedder=dspy.Embedder(embed), corpus=corpus, k=2)


class RAG(dspy.Module):
    def __init__(self):
        self.respond = dspy.ChainOfThought("context, question -> response")

    def forward(self, question):
        context = search(question).passages
        return self.respond(context=context, question=question)
