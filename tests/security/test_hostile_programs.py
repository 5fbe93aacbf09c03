"""Whatever a caller sends as a program becomes one or is refused with its place, within bounds."""

from __future__ import annotations

import gc
import threading
import time
from typing import Any

import pytest
from dspy.signatures.signature import SignatureMeta
from hypothesis import given, settings
from hypothesis import strategies as st

from dspool.config import PoolConfig
from dspool.errors import Cancelled, InvalidRequest, PoolError
from dspool.messages import ConfigureLM, CreateProgram, ExecuteProgram, GetProgramInfo, limits
from dspool.programs.marks import MARKS
from dspool.programs.program import Definition, Program, load_program
from dspool.programs.sessions.host import SessionHost
from dspool.programs.sessions.session import Session
from dspool.programs.signatures import build_signature
from dspool.wire.frames import encode_command
from tests.security.corpus import CORPUS, Hostile, of
from tests.security.hostile_programs import demo, objects, predictor, signature

CONFIG = PoolConfig()
SIMPLE = {"signature": "question -> answer"}
LONGEST_REFUSAL = 2_000


@pytest.fixture(scope="module")
def host() -> SessionHost:
    return SessionHost(CONFIG)


def outcome(definition: Definition) -> Program | InvalidRequest:
    try:
        return load_program(definition, CONFIG)
    except PoolError as raised:
        refused = raised
    # `NotAllowed` for an import path would be as good; nothing here names one that exists.
    assert refused.outcome == "client_error", refused
    assert len(refused.message) < LONGEST_REFUSAL
    assert len(str(refused.details)) < LONGEST_REFUSAL
    refused.message.encode()
    return refused


def definition_of(entry: Hostile) -> Definition:
    value = entry.build()
    if entry.kind == "signature":
        return Definition(spec={"signature": value})
    return Definition(spec=value) if entry.kind == "spec" else Definition(spec=SIMPLE, state=value)


@pytest.mark.parametrize("entry", of("signature", "spec", "state"), ids=lambda e: f"{e.kind}: {e.name}")
def test_a_hostile_program_becomes_one_or_is_refused(entry: Hostile):
    built = outcome(definition_of(entry))
    if isinstance(built, Program):
        assert built.describe()
        # What was taken also writes its prompt: nothing is left to fail in an operation.
        for _, predictor in built.module.named_predictors():
            built.adapter.format(predictor.signature, predictor.demos, {"question": "q"})


@pytest.mark.parametrize(
    ("text", "value"),
    [("'a\\'b'", "a'b"), ("'\\u00e9\\n'", "é\n"), ('"\\x41"', "A"), ("-5", -5), ("True", True), ("'é'", "é")],
)
def test_literals_are_read_as_python_writes_them(text: str, value: Any):
    built = build_signature(f"a -> b: Literal[{text}]")
    assert built.outputs[0].type.check(value) is None
    again = build_signature(f"a -> b: {built.outputs[0].type.text}")
    assert again.outputs[0].type.check(value) is None


@pytest.mark.parametrize(
    "value",
    [5, "x", [5], [[]], [None], {"a": 1}, True],
)
def test_demonstrations_of_another_shape_are_refused_at_once_with_their_place(value: Any):
    refused = outcome(Definition(spec=SIMPLE, state=predictor(demos=value)))
    assert isinstance(refused, InvalidRequest)
    assert refused.field.startswith("state.self.demos")


def test_settings_of_decisions_are_refused_for_every_kind_of_output():
    """DSPy makes new classes and a new prompt of them in every operation: 64 of them take 9 s on the event loop."""
    for kind in ("bool", "Literal['a', 'b']"):
        state = predictor(fields={"answer": {"instructions": "Is it?"}})
        refused = outcome(Definition(spec={"signature": f"question -> answer: {kind}"}, state=state))
        assert isinstance(refused, InvalidRequest)
        assert refused.field == "state.self.fields"


@pytest.mark.parametrize("mark", MARKS)
def test_no_spelling_of_a_literal_brings_a_mark_into_the_prompt(mark: str):
    hidden = "".join(f"\\x{ord(char):02x}" for char in mark)
    for kind in (
        f"Literal['{hidden}']",
        f"list[Literal['a', '{hidden}']]",
        {"type": "object", "fields": [{"name": "a", "type": f"Literal['{hidden}']"}]},
    ):
        refused = outcome(Definition(spec={"signature": signature(kind)}))
        assert isinstance(refused, InvalidRequest)
        assert "mark" in refused.message


@pytest.mark.parametrize("name", sorted(name for name in dir(SignatureMeta) if not name.startswith("_")))
def test_a_field_named_like_a_part_of_a_signature_is_a_field_or_refused(name: str):
    for text in (f"{name} -> other", f"other -> {name}"):
        built = outcome(Definition(spec={"signature": text}))
        if isinstance(built, Program):
            assert name in built.module.signature.fields
        else:
            assert built.field == name


def test_a_state_that_dspy_saved_is_taken():
    state = predictor(demos=[demo(), {**demo(), "augmented": True}], metadata={"dependency_versions": {}})
    assert isinstance(outcome(Definition(spec=SIMPLE, state=state)), Program)


def test_what_nests_counts_as_a_whole():
    def types(kind: Any) -> bool:
        return isinstance(outcome(Definition(spec={"signature": signature(kind)})), Program)

    assert types(objects(2, 10))  # with the question 1 + 1 + 10 + 100
    assert not types(objects(2, 11))
    assert not types({"type": "list", "items": "list[" * 8 + "int" + "]" * 8})
    assert types("list[" * (limits.MAX_DEPTH - 1) + "int" + "]" * (limits.MAX_DEPTH - 1))


def test_signatures_that_no_program_uses_any_more_leave_little_behind():
    def alive() -> int:
        gc.collect()
        # Classes of other tests compute their names, and proxies pass for classes.
        classes = [kind for kind in gc.get_objects() if issubclass(type(kind), type)]
        return sum(type.__dict__["__name__"].__get__(kind).startswith("OwnType") for kind in classes)

    def hostile(number: int) -> Any:
        kind = {**objects(2, 9), "name": f"OwnType{number}"}
        return {
            "inputs": ["question"],
            "outputs": [{"name": "answer", "type": {"type": "optional", "of": kind}}],
        }

    built = [build_signature(hostile(number)) for number in range(40)]
    assert alive() == 40
    assert build_signature(hostile(0)) is built[0]
    types = built[0].types
    del built
    # A collection does nothing while another thread of this process is at one: then the next one counts.
    until = time.monotonic() + 60.0
    while (left := alive()) > limits.MAX_KEPT_TYPES // types + 1 and time.monotonic() < until:
        pass
    assert 0 < left <= limits.MAX_KEPT_TYPES // types + 1


def test_a_session_builds_its_programs_in_a_thread_after_it_moved(host: SessionHost):
    session = Session(host, "s")
    create = CreateProgram("mine", spec=SIMPLE)
    assert host.plan(create, session) == "thread"
    changes = host.run_thread(create, session).changes
    moved = Session.rebuild(host, "s", changes)
    run = ExecuteProgram("mine", {"question": "q"})
    assert host.plan(run, moved) == host.plan(GetProgramInfo("mine"), moved) == "build"
    host.build(run, moved)
    assert host.plan(run, moved) == "inline"
    assert host.plan(GetProgramInfo("mine"), moved) == "thread"


def test_a_program_that_is_built_too_late_is_not_kept(host: SessionHost):
    session, stop = Session(host, "s"), threading.Event()
    stop.set()
    with pytest.raises(Cancelled):
        host.run_thread(CreateProgram("mine", spec=SIMPLE), session, stop=stop)
    assert not session.definitions


@pytest.mark.parametrize("entry", of("overrides"), ids=lambda e: e.name)
def test_hostile_overrides_of_an_lm_are_refused(entry: Hostile, host: SessionHost):
    with pytest.raises(InvalidRequest) as refused:
        host.run_inline(ConfigureLM("offline", entry.build()), Session(host, "s"))
    assert len(refused.value.message) < LONGEST_REFUSAL


def test_the_names_of_the_corpus_are_its_own():
    assert len({(entry.kind, entry.name) for entry in CORPUS}) == len(CORPUS)


# --- what nobody thought of -------------------------------------------------------------------------

TEXT = st.text(st.characters(codec=None), max_size=30)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=12,
)
KINDS = ["str", "int", "list", "dict", "object", "literal", "optional", "Literal", "Optional", "Any"]
WORDS = st.sampled_from(KINDS)
FAMILIAR = ["a", "b", "question", "answer", "copy", "json", "class", "_x", "signature", "model_x", "é"]
NAMES = st.sampled_from(FAMILIAR) | TEXT
TYPE_PARTS = [*"[],|'\"\\- \n1x", "str", "list[", "Literal['", "None", "9" * 25]
SIGNATURE_PARTS = ["a", "b", ":", ",", "->", " ", "str", "list[", "]", "'", "Literal[", "\\"]


def joined(parts: list[str]) -> st.SearchStrategy[str]:
    return st.lists(st.sampled_from(parts), max_size=15).map("".join)


TYPE = st.recursive(
    WORDS | joined(TYPE_PARTS) | JSON,
    lambda inner: st.fixed_dictionaries(
        {"type": WORDS},
        optional={
            "items": inner,
            "values": inner | st.lists(JSON, max_size=3),
            "of": inner,
            "name": NAMES,
            "fields": st.lists(st.fixed_dictionaries({"name": NAMES, "type": inner}), max_size=4),
            "desc": TEXT,
        },
    ),
    max_leaves=6,
)
FIELD = NAMES | st.fixed_dictionaries({"name": NAMES}, optional={"type": TYPE, "desc": TEXT | JSON}) | JSON
SIGNATURE = (
    st.fixed_dictionaries(
        {"inputs": st.lists(FIELD, max_size=3), "outputs": st.lists(FIELD, max_size=3)},
        optional={"instructions": TEXT | JSON},
    )
    | joined(SIGNATURE_PARTS)
    | JSON
)
MODULES = ["Predict", "ChainOfThought", "ReAct", "MultiChainComparison", "BestOfN"]
SETTINGS = st.sampled_from(["temperature", "stop", "seed", "attempts", "n", "tools"])
SPEC = st.fixed_dictionaries(
    {"signature": SIGNATURE},
    optional={
        "module": st.sampled_from(["Predict", "ChainOfThought", "ReAct", "MultiChainComparison", "BestOfN"])
        | JSON,
        "adapter": st.sampled_from(["chat", "json", "xml"]) | JSON,
        "lm": st.just("offline") | JSON,
        "settings": st.dictionaries(SETTINGS | TEXT, JSON),
    },
)
PART = st.fixed_dictionaries(
    {"signature": st.just(predictor()["signature"]) | JSON},
    optional={
        name: st.just([demo()]) | JSON for name in ("demos", "traces", "train", "lm", "fields", "metadata")
    },
)


@settings(max_examples=300, deadline=None)
@given(SPEC)
def test_any_spec_becomes_a_program_or_is_refused(spec: Any):
    outcome(Definition(spec=spec))


@settings(max_examples=200, deadline=None)
@given(PART | st.dictionaries(st.sampled_from(["self", "predict", "metadata"]), PART | JSON))
def test_any_state_fits_or_is_refused(state: Any):
    outcome(Definition(spec=SIMPLE, state=state))


@settings(max_examples=200, deadline=None)
@given(st.dictionaries(st.sampled_from(["question", "context", "self"]) | TEXT, JSON, max_size=3))
def test_any_inputs_are_taken_or_refused(inputs: Any):
    program = load_program(Definition(spec={"signature": "context: Any, question: Any -> answer"}), CONFIG)
    try:
        encode_command(ExecuteProgram("qa", inputs))
        program.check_inputs(inputs)
    except InvalidRequest as raised:
        refused = raised
    else:
        return
    assert len(refused.message) < LONGEST_REFUSAL
