"""What a text takes in a worker is what counts, and not what it takes in UTF-8."""

from __future__ import annotations

import msgspec
import pytest

from dspool.core.admission.quotas import size_of

LONG = 100_000


@pytest.mark.parametrize(
    "text",
    [
        "a" * LONG,
        "a" * LONG + "\U0001f600",
        "\U0001f600" + "a" * LONG,
        '\U0001f600"' + "a" * LONG,
        "\U0001f600\\" + "a" * LONG,
        '\U0001f600\\\\"' + "a" * LONG,
        "\U0001f600" + '"' * LONG,
        "\U0001f600\n" + "a" * LONG,
        "a" * LONG + "\u0100",
        "\u00e4" * LONG,
        "\u4e2d" * LONG,
    ],
)
@pytest.mark.parametrize("shape", [lambda text: text, lambda text: [text, "b"], lambda text: {text: text}])
def test_a_text_counts_for_what_python_takes_for_it(text, shape):
    value = shape(text)
    size = size_of(msgspec.json.encode(value).decode())
    number = 2 if isinstance(value, dict) else 1
    width = 1 if max(text) <= "\xff" else 2 if max(text) <= "\uffff" else 4
    assert size >= number * width * len(text)


def test_a_wide_character_costs_the_texts_beside_it_nothing():
    words = ["a" * 100 for _ in range(1000)]
    narrow, wide = (size_of(msgspec.json.encode([*words, last]).decode()) for last in ("b", "\U0001f600"))
    assert wide - narrow < 100
