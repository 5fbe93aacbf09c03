"""What a model answers is what a caller had it answer: reading it takes no longer than reading a request."""

from __future__ import annotations

import json
import time

import msgspec
import pytest
from dspy.utils.exceptions import AdapterParseError

from dspool.config import PoolConfig
from dspool.errors import CallerError
from dspool.messages import command_from
from dspool.programs.marks import MARKS
from dspool.programs.models.endings import NoAnswer
from dspool.programs.models.errors import translate
from dspool.programs.program import Definition, load_program
from dspool_serve.api.schema import ExecuteRequest
from dspool_serve.http.requests import decode
from tests.security.loop_steps import LIMIT_S, speed

BRACKETS = ("{", "[", "{ ", '{"a":', '{"a":{', "[{", "1{", "}{", "{}", "{a", '"{', "]", "(")
BROKEN = ('b"', '"a"//', 'a"b ', '<entry key="a">', '"a" : ', ' {"a":1} x')
OTHERS = ('"', "\\", ",", "<a>", "word ", "-", "~", "not ")
BEFORE = ("", "[[ ## answer ## ]]\n", '{"answer": [', '[[ ## answer ## ]]\n["', '{"answer": ["')
SIZE = 8_000


@pytest.mark.parametrize("fallback", [False, True], ids=["its own", "the JSON adapter asked next"])
@pytest.mark.parametrize("name", ["chat", "json", "xml"])
def test_no_answer_of_a_model_holds_the_loop_that_reads_it(name: str, fallback: bool):
    spec = {"signature": "question -> answer: list[str], number: int", "adapter": name}
    program = load_program(Definition(spec=spec), PoolConfig())
    adapter = program.adapter._make_json_adapter_fallback() if fallback else program.adapter
    for unit in (*BRACKETS, *BROKEN, *OTHERS):
        for before in BEFORE:
            took_s = []
            for _ in range(3):
                began = time.thread_time()
                # Python's parser, which DSPy asks last, says `MemoryError` to what nests too deep.
                with pytest.raises((AdapterParseError, ValueError, MemoryError, RecursionError)):
                    adapter.parse(program.module.signature, before + unit * (SIZE // len(unit)))
                took_s.append(time.thread_time() - began)
                if took_s[-1] < LIMIT_S:
                    break
                took_s[-1] /= speed()
            assert min(took_s) < LIMIT_S, (before, unit)


@pytest.mark.parametrize("adapter", ["chat", "json"])
def test_an_answer_with_many_brackets_that_close_is_read(adapter: str):
    spec = {"signature": "question -> answer: list[list[int]]", "adapter": adapter}
    program = load_program(Definition(spec=spec), PoolConfig())
    value = "[" + ", ".join(["[1]"] * 500) + "]"
    text = f"[[ ## answer ## ]]\n{value}" if adapter == "chat" else f'{{"answer": {value}}}'
    assert program.adapter.parse(program.module.signature, text) == {"answer": [[1]] * 500}


@pytest.mark.parametrize("adapter", ["chat", "json", "xml"])
def test_a_text_with_many_brackets_is_read_as_it_is(adapter: str):
    program = load_program(
        Definition(spec={"signature": "question -> answer", "adapter": adapter}), PoolConfig()
    )
    text = "so sad :( " * 100
    answers = {
        "chat": f"[[ ## answer ## ]]\n{text}",
        "json": json.dumps({"answer": text}),
        "xml": f"<answer>{text}</answer>",
    }
    parsed = program.adapter.parse(program.module.signature, answers[adapter])
    assert parsed["answer"].strip() == text.strip()


def test_a_long_answer_with_the_usual_mistakes_is_repaired():
    program = load_program(
        Definition(spec={"signature": "question -> answer: list[str]", "adapter": "json"}), PoolConfig()
    )
    value = [f"some words, and number {number}" for number in range(300)]
    text = json.dumps({"answer": value})
    for broken in (f"```json\n{text}\n```", f"Here it is: {text}", f"{text[:-2]},]}}", text[:-2]):
        assert program.adapter.parse(program.module.signature, broken) == {"answer": value}


@pytest.mark.parametrize("adapter", ["chat", "json", "xml"])
def test_an_answer_with_a_mark_of_dspy_goes_into_no_next_prompt(adapter: str):
    """Agents and comparisons show the model what it answered before; a mark there would be an image or a file."""
    program = load_program(
        Definition(spec={"signature": "question -> answer", "adapter": adapter}), PoolConfig()
    )
    for mark in MARKS:
        answers = {
            "chat": f"[[ ## answer ## ]]\n{mark}",
            "json": json.dumps({"answer": mark}),
            "xml": f"<answer>{mark.replace('<', '&lt;')}</answer>",
        }
        with pytest.raises(AdapterParseError):
            program.adapter.parse(program.module.signature, answers[adapter])


def test_a_refusal_does_not_repeat_a_name_that_is_as_long_as_a_body():
    name = "k" * 900_000
    with pytest.raises(CallerError) as refused:
        decode(msgspec.json.Decoder(ExecuteRequest), msgspec.json.encode({"inputs": {}, name: 1}))
    assert len(refused.value.message) < 1_000
    with pytest.raises(CallerError) as refused:
        command_from({"command": name})
    assert len(refused.value.message) < 1_000


def test_a_refusal_that_is_no_unicode_is_told_as_the_refusal_that_it_is():
    told = translate(NoAnswer("none", reason="refused", refusal="no \ud800!", model="m"))
    assert told.code == "model_refused"
    assert told.details["refusal"] == "no \ufffd!"
    assert msgspec.json.encode(told.to_wire())
