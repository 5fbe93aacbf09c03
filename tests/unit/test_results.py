from __future__ import annotations

import copy
import pickle
import re

import pytest

from dspool.messages import Result


def result(value):
    return Result("op", "w0", value, 1, 0.1, 0.2, {"m": {"total_tokens": 3}}, False)


def test_outputs_are_read_as_attributes():
    answer = result({"outputs": {"answer": "Paris", "score": 0.5}})
    assert answer.answer == "Paris"
    assert answer.outputs == {"answer": "Paris", "score": 0.5}


def test_what_describes_the_operation_wins_over_an_output_of_the_same_name():
    assert result({"outputs": {"worker": "theirs"}}).worker == "w0"


@pytest.mark.parametrize("value", [None, "pong", [1], {"ended": True}, {"outputs": None}])
def test_a_command_without_outputs_says_so(value):
    with pytest.raises(TypeError, match="value"):
        _ = result(value).outputs
    with pytest.raises(AttributeError):
        _ = result(value).answer


def test_a_missing_output_is_an_attribute_error_that_names_it():
    with pytest.raises(AttributeError, match="nope"):
        _ = result({"outputs": {}}).nope


@pytest.mark.parametrize("value", ["pong", {"outputs": {"answer": 1}}])
def test_it_crosses_processes(value):
    original = result(value)
    for other in (pickle.loads(pickle.dumps(original)), copy.copy(original), copy.deepcopy(original)):
        assert other == original


def test_a_mistyped_output_says_what_may_be_meant():
    with pytest.raises(AttributeError, match=re.escape("no output anser; did you mean answer?")):
        _ = result({"outputs": {"answer": "Paris"}}).anser
    with pytest.raises(AttributeError, match="no output nope; it has answer, score"):
        _ = result({"outputs": {"answer": "Paris", "score": 1}}).nope
    with pytest.raises(AttributeError, match=re.escape("did you mean cost_usd?")):
        _ = result({"outputs": {}}).cost_us


def test_its_repr_shows_the_outputs_and_who_ran_it_and_no_more_of_a_long_answer_than_fits():
    shown = repr(result({"outputs": {"answer": "Paris", "text": "x" * 5000}}))
    assert shown.startswith("Result(answer='Paris', text='xxx")
    assert shown.endswith("worker='w0', operation_id='op', run_s=0.2)")
    assert len(shown) < 250
    assert repr(result("pong")) == "Result(value='pong', worker='w0', operation_id='op', run_s=0.2)"
