"""Programs come from specs, saved state and allowed import paths, and from nothing else."""

from __future__ import annotations

from typing import Any

import dspy
import pytest
import sample_programs

from dspool.config import PoolConfig
from dspool.corrections import VARIABLE
from dspool.errors import InvalidRequest, NotAllowed, PoolError, ProgramError, UnknownName
from dspool.messages import Deployment, ExecuteProgram
from dspool.programs.program import Definition, load_program, to_json
from dspool.programs.sessions.host import SessionHost

CONTEXT = "Paris is the capital of France. Rome is the capital of Italy."
QUESTION = "What is the capital of Italy?"


@pytest.fixture(scope="module")
def host() -> SessionHost:
    return SessionHost(
        PoolConfig(
            allowed_imports=("sample_programs",),
            allowed_callables={
                "programs": ["sample_programs:not_a_program"],
                "tools": ["sample_programs:lookup", "sample_programs:lookup_later"],
                "rewards": ["sample_programs:longest", "sample_programs:broken_reward"],
            },
        )
    )


def run(host: SessionHost, inputs: dict[str, Any], **source: Any) -> dict[str, Any]:
    host.deploy(Deployment(program="p", version=1, **source))
    command = ExecuteProgram("p", inputs)
    outputs: dict[str, Any] = host.run_thread(command, None).value["outputs"]
    return outputs


def refused(host: SessionHost, kind: type[PoolError] = InvalidRequest, **source: Any) -> str:
    with pytest.raises(kind) as error:
        host.load(Definition(**source))
    return error.value.message


def spec(module: str, **settings: Any) -> dict[str, Any]:
    return {"signature": "context, question -> answer", "module": module, "settings": settings}


def test_chain_of_thought_also_gives_its_reasoning(host: SessionHost):
    outputs = run(host, {"context": CONTEXT, "question": QUESTION}, spec=spec("ChainOfThought"))
    assert outputs["answer"] == "Rome"
    assert list(outputs) == ["reasoning", "answer"]


@pytest.mark.parametrize("module", ["BestOfN", "Refine"])
def test_a_rewarded_program_tries_until_the_threshold(host: SessionHost, module: str, capsys: Any):
    sample_programs.calls.clear()
    settings = {"n": 2, "threshold": 99.0, "reward": "sample_programs:longest"}
    outputs = run(host, {"context": CONTEXT, "question": QUESTION}, spec=spec(module, **settings))
    assert outputs["answer"] == "Rome"
    assert sample_programs.calls == ["Rome", "Rome"]
    sample_programs.calls.clear()
    run(host, {"context": CONTEXT, "question": QUESTION}, spec=spec(module, **{**settings, "threshold": 1.0}))
    assert sample_programs.calls == ["Rome"]


def test_a_failing_attempt_prints_nothing_and_wears_nothing_out(host: SessionHost, capsys: Any):
    settings = {"n": 2, "reward": "sample_programs:broken_reward"}
    host.deploy(Deployment("p", 1, spec=spec("BestOfN", **settings)))
    program, _ = host.pool_programs.get("p")
    before = program.module.fail_count
    for _ in range(3):
        with pytest.raises(ProgramError):
            host.run_thread(ExecuteProgram("p", {"context": CONTEXT, "question": QUESTION}), None)
    assert program.module.fail_count == before
    assert "secret" not in capsys.readouterr().out


def test_chains_are_compared(host: SessionHost):
    outputs = run(
        host, {"context": CONTEXT, "question": QUESTION}, spec=spec("MultiChainComparison", attempts=2)
    )
    assert set(outputs) == {"rationale", "answer"}


def test_an_agent_is_built_with_allowed_tools_and_planned_by_how_they_run(
    host: SessionHost, monkeypatch: pytest.MonkeyPatch
):
    outputs = run(
        host, {"context": CONTEXT, "question": QUESTION}, spec=spec("ReAct", tools=["sample_programs:lookup"])
    )
    assert outputs["answer"] == "Rome"
    command = ExecuteProgram("p", {})
    assert host.plan(command, None) == "apart"
    # Uncorrected, DSPy would call the plain one on the event loop.
    monkeypatch.setenv(VARIABLE, "-dspy-plain-tools")
    for version, (tool, plan) in enumerate({"lookup": "thread", "lookup_later": "apart"}.items(), 2):
        host.deploy(Deployment("p", version, spec=spec("ReAct", tools=[f"sample_programs:{tool}"])))
        assert host.plan(command, None) == plan
    for version in (1, 2, 3):
        host.retire("p", version)


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ({"signature": "a -> b", "module": "Nope"}, "unknown module 'Nope'"),
        ({"module": "Predict"}, "needs a signature"),
        ({"signature": "a -> b", "modul": "Predict"}, "unknown key 'modul'"),
        ({"signature": "a -> b", "adapter": "yaml"}, "unknown adapter 'yaml'"),
        ({"signature": "a -> b", "settings": {"temprature": 1}}, "unknown LM setting 'temprature'"),
        ({"signature": "a -> b", "settings": {"temperature": "hot"}}, "'temperature' is out of range"),
        ({"signature": "a -> b", "settings": {"api_base": "http://x"}}, "unknown LM setting 'api_base'"),
        ({"signature": "a -> b", "module": "ReAct", "settings": {"max_iters": 0}}, "max_iters"),
        ({"signature": "a -> b", "module": "BestOfN"}, "needs the setting reward"),
        ({"signature": "a -> reasoning", "module": "ChainOfThought"}, "adds the field 'reasoning' itself"),
        ({"signature": "a -> b", "settings": [1]}, "settings must be an object"),
        ({"signature": "a -> b", "lm": 3}, "lm must be a name"),
    ],
)
def test_a_bad_spec_is_refused(host: SessionHost, source: dict[str, Any], says: str):
    assert says in refused(host, spec=source)


def test_an_unknown_profile_is_refused_when_the_program_is_made(host: SessionHost):
    assert "no LM profile 'fast'" in refused(host, UnknownName, spec={"signature": "a -> b", "lm": "fast"})


def test_generated_code_needs_permission(host: SessionHost):
    assert "allow_execute_code" in refused(host, NotAllowed, spec=spec("ProgramOfThought"))


def test_an_import_path_gives_a_program_with_arguments(host: SessionHost):
    outputs = run(host, {"question": "Why?"}, import_path="sample_programs:Shout", kwargs={"mark": "#"})
    assert outputs["answer"].endswith("#")
    assert host.plan(ExecuteProgram("p", {}), None) == "thread"


def test_an_imported_program_with_an_async_form_runs_on_a_loop_of_its_own(host: SessionHost):
    host.deploy(Deployment("p", 1, import_path="sample_programs:AsyncShout"))
    assert host.plan(ExecuteProgram("p", {}), None) == "apart"


def test_a_finished_program_is_copied_for_each_load(host: SessionHost):
    loaded = host.load(Definition(import_path="sample_programs:finished"))
    assert loaded.module is not sample_programs.finished
    assert loaded.module.mark == "?"


@pytest.mark.parametrize(
    ("path", "kind", "says"),
    [
        ("os:system", NotAllowed, "not within allowed_imports"),
        ("sample_programs_other:X", NotAllowed, "not within allowed_imports"),
        ("sample_programs:Missing", InvalidRequest, "is not there"),
        ("sample_programs.Shout", InvalidRequest, "package.module:Name"),
        ("sample_programs:__class__()", InvalidRequest, "package.module:Name"),
        ("sample_programs:not_a_program", InvalidRequest, "gives no dspy.Module"),
    ],
)
def test_other_import_paths_are_refused(host: SessionHost, path: str, kind: type[PoolError], says: str):
    assert says in refused(host, kind, import_path=path)


def test_wrong_arguments_are_refused(host: SessionHost):
    assert "kwargs do not fit" in refused(host, import_path="sample_programs:Shout", kwargs={"nope": 1})


def test_inputs_of_an_imported_program_are_checked_by_name(host: SessionHost):
    loaded = host.load(Definition(import_path="sample_programs:Shout"))
    with pytest.raises(InvalidRequest, match="'question' is missing"):
        loaded.check_inputs({})
    with pytest.raises(InvalidRequest, match="unknown input 'x'"):
        loaded.check_inputs({"question": "a", "x": 1})


def test_an_exception_in_a_program_says_its_text_beside_the_message(host: SessionHost):
    with pytest.raises(ProgramError) as error:
        run(host, {"text": "private"}, import_path="sample_programs:Failing")
    assert error.value.details["exception"] == "ValueError"
    assert "sample_programs" in error.value.details["at"]
    assert "secret" not in error.value.message
    assert error.value.text == "secret {'text': 'private'}"


def test_an_output_that_is_no_json_is_an_error_of_the_program(host: SessionHost):
    with pytest.raises(ProgramError, match="object, which is no JSON"):
        run(host, {}, import_path="sample_programs:Odd")


def test_saved_state_goes_into_what_the_spec_builds(host: SessionHost):
    trained = dspy.ChainOfThought("context, question -> answer")
    trained.predict.signature = trained.predict.signature.with_instructions("Trained words.")
    trained.predict.demos = [dspy.Example(context="c", question="q", reasoning="r", answer="a")]
    state = trained.dump_state()
    loaded = host.load(Definition(spec=spec("ChainOfThought"), state=state))
    assert loaded.module.predict.signature.instructions == "Trained words."
    assert len(loaded.module.predict.demos) == 1
    outputs = run(host, {"context": CONTEXT, "question": QUESTION}, spec=spec("ChainOfThought"), state=state)
    assert outputs["answer"] == "Rome"


def test_a_restored_lm_never_beats_the_profile(host: SessionHost):
    trained = dspy.Predict("context, question -> answer")
    trained.set_lm(dspy.LM("openai/gpt-4o-mini", api_base="http://evil.example"))
    loaded = host.load(Definition(spec=spec("Predict"), state=trained.dump_state()))
    assert loaded.module.lm is None


@pytest.mark.parametrize(
    ("state", "says"),
    [
        ({"other": {"signature": {}}}, "has no predictor 'predict'"),
        ({"predict": {"signature": {}, "forward": "x"}}, "not what DSPy saves"),
        ({"predict": []}, "predict must be an object, got list"),
        ({"predict": {"signature": {}}}, "does not fit the module"),
    ],
)
def test_state_that_does_not_fit_is_refused(host: SessionHost, state: Any, says: str):
    state = {"predict": {"signature": {}}, **state} if "other" in state else state
    message = refused(host, spec=spec("ChainOfThought"), state=state)
    assert says in message or "has a predictor 'other'" in message


def test_a_program_needs_a_source():
    with pytest.raises(InvalidRequest, match="needs a spec, or an import_path"):
        load_program(Definition(), PoolConfig())


def test_values_become_plain_json():
    assert to_json({"a": (1, {"b": dspy.Example(c=2)}), 3: None}) == {"a": [1, {"b": {"c": 2}}], "3": None}


# --- fields of signatures, remembered ---


@pytest.mark.parametrize("module", ["Predict", "ChainOfThought"])
def test_the_fields_of_a_loaded_program_are_those_that_dspy_finds(host, module):
    program = host.load(Definition(spec=spec(module)))
    for _, predictor in program.module.named_predictors():
        signature = predictor.signature
        kinds = {
            name: field.json_schema_extra["__dspy_field_type"] for name, field in signature.fields.items()
        }
        assert list(signature.input_fields) == [name for name, kind in kinds.items() if kind == "input"]
        assert list(signature.output_fields) == [name for name, kind in kinds.items() if kind == "output"]
        assert list(signature.fields) == list(signature.model_fields)
        assert type(signature) is not type(dspy.Signature), "it is collected anew at each call"


def test_changing_the_fields_that_a_signature_gives_changes_nothing_in_it(host):
    signature = host.load(Definition(spec=spec("Predict"))).module.signature
    signature.input_fields.clear()
    signature.output_fields["more"] = None
    assert list(signature.fields) == ["context", "question", "answer"]


def test_a_signature_derived_from_a_loaded_one_has_its_own_fields(host):
    signature = host.load(Definition(spec=spec("Predict"))).module.signature
    longer = signature.append("reason", dspy.OutputField(), str)
    assert list(longer.output_fields) == ["answer", "reason"]
    assert list(signature.delete("context").input_fields) == ["question"]

    class Sub(signature):
        extra: str = dspy.OutputField()

    assert list(Sub.output_fields) == ["answer", "extra"]
    assert list(signature.output_fields) == ["answer"]
