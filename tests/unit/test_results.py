from __future__ import annotations

import copy
import pickle

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
