"""After "Email Information Extraction": nested types, out of two steps of thought."""

import os
from datetime import datetime
from enum import Enum

import dspy
from pydantic import BaseModel

dspy.configure(
    lm=dspy.LM("openai/gpt-4o-mini", api_base=os.environ["MODEL_URL"], api_key=os.environ["MODEL_KEY"])
)


class EmailType(str, Enum):
    ORDER = "order_confirmation"
    SUPPORT = "support_request"


class Entity(BaseModel):
    entity_type: str
    value: str


class ClassifyEmail(dspy.Signature):
    """Classify an email."""

    email_subject: str = dspy.InputField()
    email_body: str = dspy.InputField()
    email_type: EmailType = dspy.OutputField()


class ExtractEntities(dspy.Signature):
    """Extract the key entities of an email."""

    email_content: str = dspy.InputField()
    email_type: EmailType = dspy.InputField()
    key_entities: list[Entity] = dspy.OutputField()
    deadline: str | None = dspy.OutputField()


class EmailProcessor(dspy.Module):
    def __init__(self):
        super().__init__()
        self.classifier = dspy.ChainOfThought(ClassifyEmail)
        self.extractor = dspy.ChainOfThought(ExtractEntities)

    def forward(self, email_subject: str, email_body: str):
        kind = self.classifier(email_subject=email_subject, email_body=email_body)
        found = self.extractor(email_content=f"{email_subject}\n{email_body}", email_type=kind.email_type)
        return dspy.Prediction(
            email_type=kind.email_type,
            key_entities=found.key_entities,
            deadline=found.deadline,
            processed_at=datetime(2026, 1, 2, 3, 4, 5).isoformat(),
        )
