"""Programs of `benchmarks.scaling`, loaded by workers."""

from __future__ import annotations

import asyncio
from typing import Any

import dspy


class Wait(dspy.Module):
    """Takes as long as it is told and next to no processor time, as an operation that waits for a model."""

    async def aforward(self, seconds: float) -> Any:
        await asyncio.sleep(seconds)
        return dspy.Prediction(answer="")


class Echo(dspy.Module):
    """Gives back what it gets."""

    async def aforward(self, text: str) -> Any:
        return dspy.Prediction(text=text)


_HERE = "benchmarks.scaling_parts.work"
SETTINGS: dict[str, Any] = {
    "programs": {
        "answer": {"spec": {"signature": "question -> answer", "module": "Predict"}, "idempotent": True},
        "wait": {"import_path": f"{_HERE}:Wait", "idempotent": True},
        "echo": {"import_path": f"{_HERE}:Echo", "idempotent": True},
    },
    "allowed_imports": (_HERE,),
}
