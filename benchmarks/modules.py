"""DSPy programs that the benchmarks' workers load by name (`benchmarks.modules:Echo`)."""

from __future__ import annotations

import asyncio
import os
import time
from typing import Any

import dspy
import pydantic

from benchmarks.appending import append_line

CPU_S = 0.005
SLOW_S = 0.5
BLOCKED_S = 1.0


class NoOp(dspy.Module):
    def forward(self) -> Any:
        return dspy.Prediction(answer="")

    async def aforward(self) -> Any:
        return dspy.Prediction(answer="")


class Computation(dspy.Module):
    """Computes for 5 ms of its thread's processor time. Like most code that computes, it has no async form."""

    def forward(self) -> Any:
        until = time.thread_time() + CPU_S
        while time.thread_time() < until:
            sum(range(200))
        return dspy.Prediction(answer="")


class Wait(dspy.Module):
    """Takes as long as it is told and next to no processor time, as an operation that waits for a model."""

    async def aforward(self, seconds: float) -> Any:
        await asyncio.sleep(seconds)
        return dspy.Prediction(answer="")


class OccasionalWait(dspy.Module):
    """The cheapest program, which for `slow` waits half a second first, as for a model that is slow to answer."""

    def __init__(self) -> None:
        super().__init__()
        self.predict = dspy.Predict("question -> answer")

    def forward(self, question: str, slow: bool) -> Any:
        if slow:
            time.sleep(SLOW_S)
        return self.predict(question=question)

    async def aforward(self, question: str, slow: bool) -> Any:
        if slow:
            await asyncio.sleep(SLOW_S)
        return await self.predict.acall(question=question)


class Echo(dspy.Module):
    """Gives back what it gets."""

    async def aforward(self, text: str) -> Any:
        return dspy.Prediction(text=text)


class Answer(dspy.Module):
    """The cheapest program as a team writes it, instead of its spec."""

    def __init__(self) -> None:
        super().__init__()
        self.predict = dspy.Predict("question -> answer")

    async def aforward(self, question: str) -> Any:
        return await self.predict.acall(question=question)


class Customer(pydantic.BaseModel):
    name: str
    email: str


class Line(pydantic.BaseModel):
    item: str
    count: int
    price: float


class Order(pydantic.BaseModel):
    number: int
    customer: Customer
    lines: list[Line]


class TypedOrder(dspy.Module):
    """Asks about an order that it gets as a model."""

    def __init__(self) -> None:
        super().__init__()
        self.predict = dspy.Predict("question -> answer")

    async def aforward(self, order: Order) -> Any:
        total = sum(line.count * line.price for line in order.lines)
        return await self.predict.acall(question=f"Does {order.customer.name} pay {total}?")


class PlainOrder(dspy.Module):
    """The same with the order as it comes."""

    def __init__(self) -> None:
        super().__init__()
        self.predict = dspy.Predict("question -> answer")

    async def aforward(self, order: Any) -> Any:
        total = sum(line["count"] * line["price"] for line in order["lines"])
        return await self.predict.acall(question=f"Does {order['customer']['name']} pay {total}?")


class Blocking(dspy.Module):
    """Keeps the event loop of its worker for a second, as code does that waits without `await`."""

    async def aforward(self) -> Any:
        time.sleep(BLOCKED_S)  # noqa: ASYNC251
        return dspy.Prediction(answer="")


class Chronicle(dspy.Module):
    """Writes down when it began and ended, in which process, and takes `seconds`."""

    async def aforward(self, call: str, path: str, seconds: float) -> Any:
        append_line(path, {"began": call, "pid": os.getpid(), "at": time.monotonic()})
        try:
            await asyncio.sleep(seconds)
        finally:
            append_line(path, {"ended": call, "pid": os.getpid(), "at": time.monotonic()})
        return dspy.Prediction(call=call)


class Journal(dspy.Module):
    """Appends one line a run, so that runs can be counted, and takes `seconds`; its line is on disk before that."""

    async def aforward(self, label: str, path: str, seconds: float) -> Any:
        file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        try:
            os.write(file, f"{label}\n".encode())
        finally:
            os.close(file)
        await asyncio.sleep(seconds)
        return dspy.Prediction(label=label)
