"""Signatures are built from data by our own parser, and inputs are checked before anything runs."""

from __future__ import annotations

import contextlib
import sys
from typing import Any

import dspy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dspool.errors import InvalidRequest
from dspool.programs.field_types import field_type
from dspool.programs.signatures import build_signature, cache_fields

PERSON = {
    "name": "person",
    "type": "object",
    "fields": [{"name": "age", "type": "int"}, {"name": "nick", "type": "Optional[str]"}],
}


def refusal(spec: Any) -> str:
    with pytest.raises(InvalidRequest) as refused:
        build_signature(spec)
    return refused.value.message


def test_a_text_signature_has_typed_fields_in_order():
    built = build_signature("context: list[str], question -> answer: str, score: float")
    assert [(f.name, f.type.text) for f in built.inputs] == [("context", "list[str]"), ("question", "str")]
    assert [(f.name, f.type.text) for f in built.outputs] == [("answer", "str"), ("score", "float")]
    assert list(built.dspy.output_fields) == ["answer", "score"]


def test_a_dict_signature_carries_instructions_and_descriptions():
    built = build_signature(
        {"instructions": "Be brief.", "inputs": [{"name": "q", "desc": "the question"}], "outputs": ["a"]}
    )
    assert built.dspy.instructions == "Be brief."
    assert built.dspy.input_fields["q"].json_schema_extra["desc"] == "the question"


def test_equal_specs_give_the_same_signature():
    first = build_signature({"inputs": ["q"], "outputs": ["a"]})
    assert build_signature({"outputs": ["a"], "inputs": ["q"]}) is first


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("question", "exactly one '->'"),
        ("a -> b -> c", "exactly one '->'"),
        (" -> a", "1 to 64 inputs"),
        ("a -> ", "1 to 64 outputs"),
        ("a -> a", "given twice"),
        ("signature -> a", "reserved"),
        ("a -> model_config", "reserved"),
        ("a -> _b", "reserved"),
        ("class -> a", "identifier"),
        ("a b -> c", "cannot read the field"),
        ("a -> b: Foo", "cannot read the type"),
        ("a -> b: dict[int, str]", "cannot read the type"),
        ("a -> b: list[str", "cannot read the type"),
        ("a -> b: Literal[]", "cannot read the type"),
        ("a -> b: int | str", "cannot read the type"),
        ({"inputs": ["a"], "outputs": ["b"], "extra": 1}, "unknown key 'extra'"),
        ({"inputs": [{"name": "a", "typ": "int"}], "outputs": ["b"]}, "unknown key 'typ'"),
        ({"inputs": "a", "outputs": ["b"]}, "inputs must be a list"),
        ({"inputs": ["a"], "outputs": [{"name": "b", "type": "object", "fields": []}]}, "1 to 64 fields"),
        (7, "a signature is a text or an object"),
    ],
)
def test_a_bad_spec_is_refused_by_what_is_wrong(spec: Any, says: str):
    assert says in refusal(spec)


def test_a_dotted_type_is_refused_and_imports_nothing():
    assert "antigravity" not in sys.modules
    assert "cannot read the type" in refusal("question -> answer: antigravity.geohash")
    assert "antigravity" not in sys.modules


def test_types_nest_only_so_deep():
    assert "8 deep" in refusal("a -> b: " + "list[" * 20 + "str" + "]" * 20)
    data: Any = "str"
    for _ in range(20):
        data = {"type": "list", "items": data}
    assert "8 deep" in refusal({"inputs": ["a"], "outputs": [{"name": "b", "type": data}]})


@pytest.mark.parametrize(
    ("inputs", "field", "expected", "got"),
    [
        ({"n": "1", "person": {"age": 3}}, "n", "int", "str"),
        ({"n": True, "person": {"age": 3}}, "n", "int", "bool"),
        ({"n": None, "person": {"age": 3}}, "n", "int", "null"),
        ({"n": 1, "person": {"age": "3"}}, "person.age", "int", "str"),
        ({"n": 1, "person": {}}, "person.age", "int", "nothing"),
        ({"n": 1}, "person", "Person", "nothing"),
    ],
)
def test_a_wrong_input_is_named_with_both_types_and_without_its_value(
    inputs: dict[str, Any], field: str, expected: str, got: str
):
    built = build_signature({"inputs": [{"name": "n", "type": "int"}, PERSON], "outputs": ["a"]})
    with pytest.raises(InvalidRequest) as refused:
        built.check_inputs(inputs)
    assert refused.value.details == {"field": field, "expected": expected, "got": got}
    built.check_inputs({"n": 1, "person": {"age": 3}})


def test_an_unknown_input_is_refused():
    with pytest.raises(InvalidRequest, match="unknown input 'b'; the inputs are a"):
        build_signature("a -> c").check_inputs({"a": "x", "b": "y"})


def test_an_optional_input_may_be_missing_or_null():
    built = build_signature("a: Optional[int] -> c")
    built.check_inputs({})
    built.check_inputs({"a": None})
    built.check_inputs({"a": 3})
    with pytest.raises(InvalidRequest):
        built.check_inputs({"a": "3"})


@pytest.mark.parametrize(
    ("text", "good", "bad"),
    [
        ("str", "x", 1),
        ("int", 1, 1.0),
        ("float", 1, "1"),
        ("float", 1.5, float("nan")),
        ("bool", True, 1),
        ("list[int]", [1, 2], [1, "2"]),
        ("dict[str, bool]", {"a": True}, {"a": 1}),
        ("Literal['a', 1]", "a", "b"),
        ("Literal['a', 1]", 1, True),
        ("int | None", None, "x"),
        ("Any", {"x": [1]}, None),
    ],
)
def test_checks_are_strict_json(text: str, good: Any, bad: Any):
    kind = field_type(text, where="f")
    assert kind.check(good) is None
    if bad is not None:
        assert kind.check(bad) is not None


TYPES = st.recursive(
    st.sampled_from(["str", "int", "float", "bool", "Literal['a', 'b', 3]"]),
    lambda inner: st.one_of(
        inner.map(lambda t: f"list[{t}]"),
        inner.map(lambda t: f"dict[str, {t}]"),
        inner.map(lambda t: f"Optional[{t}]"),
    ),
    max_leaves=4,
)


@given(TYPES)
@settings(max_examples=60, deadline=None)
def test_a_type_reads_back_from_its_own_text(text: str):
    kind = field_type(text, where="f")
    assert field_type(kind.text, where="f").text == kind.text


@given(st.text(max_size=60))
@settings(max_examples=200, deadline=None)
def test_any_text_is_a_type_or_is_refused(text: str):
    with contextlib.suppress(InvalidRequest):
        field_type(text, where="f")


def test_a_signature_that_waits_for_a_type_has_the_fields_that_it_gets_with_that_type():
    class Waiting(dspy.Signature):
        question: str = dspy.InputField()
        answer: Later = dspy.OutputField()  # type: ignore[name-defined]  # noqa: F821

    cache_fields(Waiting)
    Waiting.model_rebuild(_types_namespace={"Later": int})
    assert Waiting.output_fields["answer"].annotation is int


def test_what_is_derived_from_a_cached_signature_has_fields_of_its_own():
    asking = dspy.Signature("question -> answer")
    cache_fields(asking)
    asking.output_fields.clear()
    assert [*asking.output_fields] == ["answer"]
    assert [*asking.append("reason", dspy.OutputField(), str).output_fields] == ["answer", "reason"]
