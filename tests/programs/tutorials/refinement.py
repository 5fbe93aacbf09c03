"""After "Output Refinement": BestOfN, then Refine, each with a reward."""

import os

import dspy

dspy.configure(
    lm=dspy.LM("openai/gpt-4o-mini", api_base=os.environ["MODEL_URL"], api_key=os.environ["MODEL_KEY"])
)


class Factuality(dspy.Signature):
    """Determine if the statement is factually accurate."""

    statement: str = dspy.InputField()
    is_factual: bool = dspy.OutputField()


factuality_judge = dspy.ChainOfThought(Factuality)


def one_word(args, pred) -> float:
    return 1.0 if len(pred.answer.split()) == 1 else 0.0


def is_factual(args, pred) -> float:
    return 1.0 if factuality_judge(statement=f"{args['question']} {pred.answer}").is_factual else 0.0


class Refined(dspy.Module):
    def __init__(self):
        super().__init__()
        qa = dspy.ChainOfThought("question -> answer")
        self.best = dspy.BestOfN(module=qa, N=2, reward_fn=one_word, threshold=1.0)
        self.refined = dspy.Refine(module=qa, N=2, reward_fn=is_factual, threshold=1.0)

    def forward(self, question: str):
        return dspy.Prediction(
            best=self.best(question=question).answer, refined=self.refined(question=question).answer
        )
