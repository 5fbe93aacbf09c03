"""In what two versions of a pool program differ."""

from __future__ import annotations

import pytest

from dspool.core.lifecycle.version_diff import HIDDEN, LONGEST, MOST, VersionDifference, differences
from dspool.messages import Deployment

SPEC = {"signature": {"inputs": ["q"], "outputs": ["a"], "instructions": "Answer."}, "module": "Predict"}


def state(**changed):
    signature = {"instructions": "Answer.", "fields": [{"prefix": "Q:"}]}
    return {
        "answer.predict": {"demos": [], "signature": signature, "lm": None, **changed},
        "metadata": {"v": 1},
    }


def version(number=1, **given):
    return Deployment("qa", number, **given)


@pytest.mark.parametrize(
    ("old", "new", "found"),
    [
        ({"spec": SPEC}, {"spec": SPEC}, []),
        (
            {"spec": SPEC},
            {"spec": {**SPEC, "signature": {**SPEC["signature"], "instructions": "Be brief."}}},
            [("instructions", "signature", "Answer.", "Be brief.")],
        ),
        (
            {"state": state()},
            {"state": state(demos=[{"q": "1"}])},
            [("demos", "answer.predict", None, '[\n {\n  "q": "1"\n }\n]')],
        ),
        (
            {"state": state(lm={"model": "m", "temperature": 0.0})},
            {"state": state(lm={"model": "m", "temperature": 1.0})},
            [("model", "answer.predict.lm.temperature", "0.0", "1.0")],
        ),
        ({"spec": {**SPEC, "lm": "a"}}, {"spec": {**SPEC, "lm": "b"}}, [("model", "lm", "a", "b")]),
        ({"spec": {"signature": "q -> a"}}, {"spec": {"signature": "q -> b"}}, [("fields", "signature", "q -> a", "q -> b")]),  # noqa: E501
        ({"spec": SPEC}, {"spec": {**SPEC, "module": "ReAct"}}, [("settings", "module", "Predict", "ReAct")]),
        ({"import_path": "shop:A"}, {"import_path": "shop:B"}, [("program", "import path", "shop:A", "shop:B")]),
        ({"import_path": "s:A"}, {"program_dir": "/d"},
         [("program", "import path", "s:A", None), ("program", "directory", None, "/d")]),
        ({"kwargs": {"k": 3}}, {"kwargs": {"k": 4}}, [("arguments", "k", "3", "4")]),
        ({"kwargs": {"api_key": "sk-1"}}, {"kwargs": {"api_key": "sk-2"}}, [("arguments", "api_key", HIDDEN, HIDDEN)]),
        ({"kwargs": {"lm": {"token": "a"}}}, {"kwargs": {}}, [("arguments", "lm", f'{{\n "token": "{HIDDEN}"\n}}', None)]),  # noqa: E501
        ({"source": {"shop": "0" * 64}}, {"source": {"shop": "1" * 64}}, [("source", "shop", "0" * 12, "1" * 12)]),
    ],
)  # fmt: skip
def test_what_differs_is_named_by_its_kind_and_place(old, new, found):
    assert differences(version(**old), version(2, **new)) == [VersionDifference(*one) for one in found]


def test_what_a_version_holds_is_shown_within_bounds():
    many = version(kwargs={f"n{number}": number for number in range(2 * MOST)})
    assert len(differences(many, version())) == MOST
    (long,) = differences(version(kwargs={"text": "x" * 2 * LONGEST}), version())
    assert len(long.before) == LONGEST + 1
