"""What the calls of models cost, by the configuration's table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dspool.config import ModelPrice

_MTOK = 1_000_000


def cost_usd(price: ModelPrice, counts: Mapping[str, Any]) -> float:
    """US dollars for the tokens of one call, as DSPy counts them: cached ones are in the prompt's, thought ones in the
    answer's. What is missing, or no number, costs nothing."""
    cached, written = _count(counts, "cached_tokens"), _count(counts, "cache_creation_tokens")
    prompt = _count(counts, "prompt_tokens", "input_tokens")
    thought = _count(counts, "reasoning_tokens")
    answer = _count(counts, "completion_tokens", "output_tokens")
    paid = (
        (max(0, prompt - cached - written), price.input_usd_per_mtok),
        (cached, _first(price.cached_input_usd_per_mtok, price.input_usd_per_mtok)),
        (written, _first(price.cache_write_usd_per_mtok, price.input_usd_per_mtok)),
        (max(0, answer - thought), price.output_usd_per_mtok),
        (thought, _first(price.reasoning_usd_per_mtok, price.output_usd_per_mtok)),
    )
    return sum(number * usd for number, usd in paid) / _MTOK


def price_of(prices: Mapping[str, ModelPrice], profile: str | None, model: str) -> ModelPrice | None:
    """The profile's own price, else the model's; None: there is none."""
    return (prices.get(profile) if profile is not None else None) or prices.get(model)


def _count(counts: Mapping[str, Any], *names: str) -> int:
    return next((counts[name] for name in names if type(counts.get(name)) is int and counts[name] > 0), 0)


def _first(price: float | None, otherwise: float) -> float:
    return otherwise if price is None else price
