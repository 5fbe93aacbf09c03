"""What an optimizer leaves behind: state for programs of one's own, and whole programs in directories."""

from __future__ import annotations

import importlib
import itertools
import json
import os
import textwrap

import dspy
import msgspec
import pytest

from dspool.config import PoolConfig
from dspool.config.saved_state import read_state
from dspool.errors import ConfigError, Conflict, InvalidRequest, NotAllowed, ProgramError
from dspool.messages import Deployment
from dspool.programs.program import Definition, load_program
from dspool.programs.sessions.host import SessionHost
from dspool.telemetry import events as telemetry

_numbers = itertools.count()
SOURCE = """
import dspy


class Answer(dspy.Module):
    def __init__(self, mark="?"):
        super().__init__()
        self.mark = mark
        self.draft = dspy.ChainOfThought("question -> answer")
        self.polish = dspy.Predict("answer -> final")
        self.polish.lm = dspy.LM("openai/own", api_key="k")

    def forward(self, question):
        return self.polish(answer=self.draft(question=question).answer)
"""


@pytest.fixture
def shop(tmp_path, monkeypatch):
    """The name of a module of a team's own."""
    name = f"saved_shop{next(_numbers)}"
    (tmp_path / f"{name}.py").write_text(textwrap.dedent(SOURCE))
    monkeypatch.syspath_prepend(str(tmp_path))
    importlib.invalidate_caches()
    return name


@pytest.fixture
def tuned(shop):
    """State as an optimizer leaves it."""
    program = importlib.import_module(shop).Answer()
    program.draft.predict.demos = [dspy.Example(question="2+2?", answer="4", reasoning="count")]
    program.draft.predict.signature = program.draft.predict.signature.with_instructions(
        "Count on your fingers."
    )
    program.polish.lm = None
    return json.loads(json.dumps(program.dump_state()))


def load(shop, **definition):
    path = f"{shop}:Answer"
    return load_program(
        Definition(import_path=path, **definition), PoolConfig(allowed_imports=(shop,))
    ).module


def test_saved_state_is_loaded_into_a_program_from_an_import_path(shop, tuned):
    module = load(shop, state=tuned, kwargs={"mark": "!"})
    assert module.mark == "!"
    assert module.draft.predict.signature.instructions == "Count on your fingers."
    assert module.draft.predict.demos[0]["answer"] == "4"
    assert module.polish.lm.model == "openai/own", "an LM of the program's own is no part of the state"
    assert module.draft.predict.lm is None


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda s: s.pop("polish"), "it has no predictor 'polish'"),
        (lambda s: s.update(other=s["polish"]), "it has a predictor 'other'.*draft.predict, polish"),
        (
            lambda s: s["polish"]["signature"]["fields"].pop(),
            "polish.signature.fields must be a list of the 2 fields",
        ),
        (lambda s: s["polish"].update(demos={}), "polish.demos must be a list"),
    ],
)
def test_state_that_does_not_fit_says_which_predictor(shop, tuned, change, why):
    change(tuned)
    with pytest.raises(InvalidRequest, match=why):
        load(shop, state=tuned)


def test_state_in_a_pickle_is_refused_with_the_reason(tmp_path):
    for name in ("state.pkl", "state.json"):
        (tmp_path / name).write_bytes(b"\x80\x04N.")
        with pytest.raises(
            ValueError, match="is a pickle, which runs code when it is read: save the state as JSON"
        ):
            read_state(tmp_path / name)
    with pytest.raises(ValueError, match="is a directory"):
        read_state(tmp_path)


@pytest.fixture
def events():
    found = []

    def handler(name, measurements, metadata):
        assert telemetry.undeclared(name, measurements, metadata) == set()
        found.append(metadata)

    telemetry.attach(handler, ["program.saved_elsewhere"])
    yield found
    telemetry.detach(handler)


def test_state_that_was_saved_with_another_dspy_is_loaded_and_told(shop, tuned, events):
    host = SessionHost(PoolConfig(allowed_imports=(shop,)))
    here = dspy.utils.saving.get_dependency_versions()
    host.deploy(
        Deployment(
            "qa", 1, state={**tuned, "metadata": {"dependency_versions": here}}, import_path=f"{shop}:Answer"
        )
    )
    assert events == []
    other = {"dependency_versions": {**here, "dspy": "2.0", "cloudpickle": "0"}}
    host.deploy(Deployment("qa", 2, state={**tuned, "metadata": other}, import_path=f"{shop}:Answer"))
    (about,) = events
    assert about["reason"] == f"saved with dspy 2.0, here is {dspy.__version__}"
    assert host.current("qa") == 2


# --- whole programs -----------------------------------------------------------------------------------


@pytest.fixture
def saved(shop, tmp_path):
    """A directory of programs, with one in it."""
    program = importlib.import_module(shop).Answer(mark="saved")
    home = tmp_path / "programs"
    program.save(home / "answer", save_program=True)
    return home


def deployment(directory, **parts):
    return Deployment("qa", 1, program_dir=str(directory), **parts)


def test_a_saved_program_is_loaded_from_a_directory_that_the_configuration_allows(shop, saved):
    host = SessionHost(PoolConfig(allowed_program_dirs=(saved,), allowed_imports=(shop,)))
    host.deploy(deployment(saved / "answer"))
    program, _ = host.pool_programs.get("qa")
    assert program.module.mark == "saved"
    assert {os.path.basename(name) for name in host.source([str(saved / "answer")]).modules} == {
        "metadata.json",
        "program.pkl",
        shop,
    }


@pytest.mark.parametrize("place", ["answer", "../programs/answer", "link", "programs/../../etc"])
def test_no_other_directory_is_read_by_whatever_way(saved, tmp_path, monkeypatch, place):
    def never(*_args, **_kwargs):
        raise AssertionError("it was read")

    monkeypatch.setattr("dspool.programs.saved.cloudpickle.load", never)
    allowed = tmp_path / "allowed"
    allowed.mkdir()
    (allowed / "link").symlink_to(saved / "answer")
    inner = allowed / "inner"
    inner.mkdir()
    for file in (saved / "answer").iterdir():
        (inner / file.name).symlink_to(file)
    config = PoolConfig(allowed_program_dirs=(allowed,))
    for directory in (allowed / place, inner, place, str(saved / "answer")):
        with pytest.raises((NotAllowed, InvalidRequest)):
            SessionHost(config).deploy(deployment(directory))
    with pytest.raises(NotAllowed, match="which has nothing"):
        SessionHost(PoolConfig()).deploy(deployment(saved / "answer"))


def test_a_program_of_another_python_is_refused(saved):
    metadata = saved / "answer" / "metadata.json"
    metadata.write_text('{"dependency_versions": {"python": "3.2"}}')
    with pytest.raises(InvalidRequest, match=r"saved by Python 3\.2, and this is 3\.\d+"):
        SessionHost(PoolConfig(allowed_program_dirs=(saved,))).deploy(deployment(saved / "answer"))


def test_what_is_no_saved_program_says_so(saved, tmp_path):
    config = PoolConfig(allowed_program_dirs=(tmp_path,))
    with pytest.raises(InvalidRequest, match=r"metadata\.json: No such file"):
        SessionHost(config).deploy(deployment(tmp_path))
    (saved / "answer" / "program.pkl").write_bytes(b"\x80\x04N.")
    with pytest.raises(InvalidRequest, match="program_dir holds a NoneType"):
        SessionHost(config).deploy(deployment(saved / "answer"))
    (saved / "answer" / "program.pkl").write_bytes(b"nonsense")
    with pytest.raises(ProgramError):
        SessionHost(config).deploy(deployment(saved / "answer"))


def test_a_version_from_a_directory_is_what_was_in_it(saved):
    host = SessionHost(PoolConfig(allowed_program_dirs=(saved,)))
    place = saved / "answer"
    host.deploy(deployment(place))
    source = host.source([str(place)])
    assert source.changed == {}
    dspy.Predict("a -> b").save(place, save_program=True)
    assert str(place / "program.pkl") in host.source([str(place)]).changed
    later = msgspec.structs.replace(deployment(place), version=1, source=source.modules)
    with pytest.raises(Conflict, match="version 1 of qa is made of other source"):
        SessionHost(PoolConfig(allowed_program_dirs=(saved,))).deploy(later)


def test_a_configured_directory_lies_within_the_allowed_ones(saved):
    programs = {"qa": {"program_dir": saved / "answer"}}
    assert PoolConfig(programs=programs, allowed_program_dirs=(saved,)).programs["qa"].program_dir is not None
    with pytest.raises(ConfigError, match="is not within allowed_program_dirs"):
        PoolConfig(programs=programs)
    with pytest.raises(ConfigError, match="must be an absolute path"):
        PoolConfig(allowed_program_dirs=("programs",))
    with pytest.raises(ConfigError, match="exactly one of spec, import_path and program_dir"):
        PoolConfig(
            programs={"qa": {"program_dir": saved / "answer", "spec": {}}}, allowed_program_dirs=(saved,)
        )
