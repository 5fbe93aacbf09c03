"""The work of the recovery benchmark: a program that appends one line a run, so that runs can be counted."""

from __future__ import annotations

import asyncio
import os
from typing import Any

import dspy


class Noted(dspy.Module):
    """Takes `seconds`; its line is on disk before it does anything that takes time."""

    async def aforward(self, label: str, path: str, seconds: float) -> Any:
        file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        try:
            os.write(file, f"{label}\n".encode())
        finally:
            os.close(file)
        await asyncio.sleep(seconds)
        return dspy.Prediction(label=label)
