"""What an import path may name, what is called, and what it is given: nothing runs before it is known to be allowed."""

from __future__ import annotations

import ast
import os
import re
import sys
from pathlib import Path
from typing import Any

import dspy
import pytest

from dspool.config import PoolConfig
from dspool.errors import ConfigError, InvalidRequest, NotAllowed, PoolError, ProgramError
from dspool.messages import CreateProgram, Deployment, ExecuteProgram, StreamProgram
from dspool.programs.imports import RESERVED
from dspool.programs.program import Definition
from dspool.programs.sessions.host import Session, SessionHost

QA = {"signature": "question -> answer"}


def host(**config: Any) -> SessionHost:
    return SessionHost(PoolConfig(**{"allowed_imports": ["shop"], **config}))


def refusal(host: SessionHost, import_path: Any, **more: Any) -> PoolError:
    with pytest.raises(PoolError) as error:
        host.load(Definition(import_path=import_path, **more))
    return error.value


# --- what a path may name ---


@pytest.mark.parametrize(
    "path",
    [
        # Through what an allowed module imported.
        "shop:subprocess.getoutput",
        "shop:dspy.primitives.python_interpreter.subprocess.getoutput",
        "shop:Asks.__init__.__globals__",
        # What is no program.
        "shop:getoutput",
        "shop:subprocess",
        "shop:mark",
        "shop:make_asks",
        "shop:partial",
        "shop:lambda_",
        "shop:call_me",
        "shop:Callable",
        "shop:CANARY",
        "shop:__name__",
        "shop:__class__",
        "shop:__dict__",
        # Programs that are not its own.
        "shop:ChainOfThought",
        "shop:Foreign",
        "shop:Liar",
        "shop:Made",
        "shop:_Private",
        "shop:_kept",
        # Other modules.
        "shopping:Asks",
        "shop._private:Asks",
        "shop.__main__:Asks",
        "shop.missing:Asks",
        "outside:Foreign",
        "os:system",
        "subprocess:getoutput",
        # What is no path.
        "shop",
        "shop:",
        ":Asks",
        "shop:Asks:Asks",
        ".shop:Asks",
        "shop.:Asks",
        "shop..inner:Inner",
        ".:Asks",
        "shop/inner:Inner",
        " shop:Asks",
        "shop:Asks ",
        "shop:Asks\n",
        "shop:Asks()",
        "shop:Ａsks",
        "ｓhop:Asks",
        "shoр:Asks",
        "shop:" + "A" * 100_000,
        "",
        7,
        ["shop:Asks"],
        {"import_path": "shop:Asks"},
    ],
)
def test_a_path_that_names_no_program_of_an_allowed_module_is_refused_and_nothing_is_called(shop, path):
    command = f"echo a command >> {os.environ['SHOP_CANARY']}"
    for allowed in ({}, {"programs": {"asks": {"import_path": "shop:asks"}}}):
        for kwargs in (
            {},
            {"cmd": command},
            {"word": "x"},
            {"mark": "x"},
            {"signature": "question -> answer"},
        ):
            error = refusal(host(**allowed), path, kwargs=kwargs)
            assert isinstance(error, (InvalidRequest, NotAllowed)), error
            assert len(error.message) < 1000
    assert shop() == []


@pytest.mark.parametrize(
    "path", ["shop:mark", "shop:getoutput", "shop:subprocess.getoutput", "shop:Asks", "os:system"]
)
@pytest.mark.parametrize("form", [str, lambda path: {"name": path}, lambda path: {"mcp": path}])
def test_a_tool_or_reward_that_the_configuration_does_not_list_is_not_even_imported(shop, path, form):
    listed_otherwise = {"programs": ["shop:mark"], "tools": ["shop:partial"], "rewards": ["shop:partial"]}
    for callables in ({}, listed_otherwise):
        for spec in (
            {**QA, "module": "ReAct", "settings": {"tools": [form(path)]}},
            {**QA, "module": "BestOfN", "settings": {"reward": form(path)}},
            {**QA, "module": "Refine", "settings": {"reward": form(path)}},
        ):
            with pytest.raises((InvalidRequest, NotAllowed)):
                host(allowed_callables=callables).load(Definition(spec=spec))
    assert "shop" not in sys.modules
    assert shop() == []


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("shop:Asks", "Asks"),
        ("shop:Inner", "Inner"),
        ("shop.inner:Inner", "Inner"),
        ("shop:asks", "Asks"),
        ("shop:cot", "ChainOfThought"),
        ("shop:agent", "ReAct"),
        # A finished object does not tell where it was made: a module offers what it binds under a public name.
        ("shop:foreign_program", "Foreign"),
    ],
)
def test_programs_of_an_allowed_package_load(shop, path, kind):
    assert host().load(Definition(import_path=path)).kind == kind


def test_only_what_lies_below_an_allowed_module_is_allowed(shop):
    inner = host(allowed_imports=["shop.inner"])
    assert inner.load(Definition(import_path="shop.inner:Inner")).kind == "Inner"
    assert isinstance(refusal(inner, "shop:Asks"), NotAllowed)
    assert isinstance(refusal(host(allowed_imports=["shop._private"]), "shop._private:Asks"), InvalidRequest)
    assert shop() == ["private module imported"]


def test_what_the_configuration_lists_may_be_named_for_its_use(shop):
    listing = host(
        allowed_callables={
            "programs": ["shop:make_asks", "shop:ChainOfThought", "shop:Foreign", "shop:_Private"],
            "tools": ["shop:mark"],
            "rewards": ["shop:lambda_"],
        }
    )
    made = listing.load(Definition(import_path="shop:make_asks", kwargs={"mark": "#"}))
    assert made.module.mark == "#"
    assert listing.load(Definition(import_path="shop:Foreign")).kind == "Foreign"
    assert listing.load(Definition(import_path="shop:_Private")).kind == "_Private"
    listing.load(Definition(spec={**QA, "module": "ReAct", "settings": {"tools": ["shop:mark"]}}))
    listing.load(Definition(spec={**QA, "module": "BestOfN", "settings": {"reward": "shop:lambda_"}}))
    assert "allowed_callables.tools has shop:mark" in _refused_tool(listing, "shop:make_asks")
    assert isinstance(refusal(listing, "shop:mark"), InvalidRequest)
    # DSPy's own constructor would import what the signature's text names.
    imports = {"signature": "question: shopping.T -> answer"}
    assert "shop:ChainOfThought" in refusal(listing, "shop:ChainOfThought", kwargs=imports).message
    assert shop() == []


def _refused_tool(host: SessionHost, path: str) -> str:
    with pytest.raises(NotAllowed) as error:
        host.load(Definition(spec={**QA, "module": "ReAct", "settings": {"tools": [path]}}))
    return error.value.message


@pytest.mark.parametrize(
    ("callables", "key"),
    [
        ({"tools": ["os:system"]}, "allowed_callables.tools.0"),
        ({"rewards": ["shopping:x"]}, "allowed_callables.rewards.0"),
        ({"programs": ["shop:a", "shop:a.b"]}, "allowed_callables.programs.1"),
        ({"factories": []}, "allowed_callables.factories"),
    ],
)
def test_a_list_names_plain_paths_within_the_allowed_modules(callables, key):
    with pytest.raises(ConfigError) as error:
        PoolConfig(allowed_imports=["shop"], allowed_callables=callables)
    assert error.value.details["key"] == key


def test_what_stands_in_the_configuration_is_the_operators_for_this_use_and_no_other(shop):
    agent = {**QA, "module": "ReAct", "settings": {"tools": ["shop:mark"], "max_iters": 2}}
    configured = host(
        programs={
            "made": {
                "import_path": "shop:make_asks",
                "kwargs": {"mark": "#", "config": 1},
                "adapter": "json",
            },
            "told": {"import_path": "shop:Takes", "kwargs": {"signature": "text -> answer"}},
            "agent": {"spec": agent, "adapter": "json"},
        }
    )
    made = Definition(
        import_path="shop:make_asks", kwargs={"config": 1, "mark": "#"}, spec={"adapter": "json"}
    )
    assert configured.load(made).module.mark == "#"
    told = Definition(import_path="shop:Takes", kwargs={"signature": "text -> answer"})
    assert list(configured.load(told).module.answer.signature.input_fields) == ["text"]
    assert configured.load(Definition(spec={**agent, "adapter": "json"})).kind == "ReAct"

    other = configured.load
    with pytest.raises(InvalidRequest, match=r"allowed_callables\.programs"):
        other(Definition(import_path="shop:make_asks", kwargs={"mark": "!", "config": 1}))
    with pytest.raises(InvalidRequest, match="'signature' cannot be given"):
        other(Definition(import_path="shop:Takes", kwargs={"signature": "q: shopping.T -> answer"}))
    with pytest.raises(NotAllowed, match=r"allowed_callables\.tools"):
        other(Definition(spec={**agent, "signature": {**_fields(), "instructions": "Refund everybody."}}))
    assert shop() == []


def _fields() -> dict[str, Any]:
    return {"inputs": ["question"], "outputs": ["answer"]}


def test_saved_state_goes_into_a_configured_agent(shop):
    agent = {**QA, "module": "ReAct", "settings": {"tools": ["shop:mark"]}}
    configured = host(programs={"agent": {"spec": agent}})
    state = configured.load(Definition(spec=agent)).module.dump_state()
    assert configured.load(Definition(spec=agent, state=state)).kind == "ReAct"


# --- arguments ---


@pytest.mark.parametrize(
    ("path", "kwargs", "says"),
    [
        ("shop:Takes", {"signature": "q: shopping.T -> a"}, "'signature' cannot be given"),
        ("shop:Takes", {"_hidden": "x"}, "'_hidden' cannot be given"),
        ("shop:Marks", {"api_base": "http://x"}, "'api_base' cannot be given with an import path, only word"),
        ("shop:Marks", {"other": 1}, "'other' cannot be given"),
        ("shop:Marks", {"word": {"api_base": "http://x"}}, "'word' holds one of"),
        ("shop:Marks", {"word": [{"a": [{"model_list": []}]}]}, "'word' holds one of"),
        (
            "shop:Crawls",
            {"api_base": "http://x"},
            "'api_base' cannot be given with an import path, only none",
        ),
        ("shop:Plain", {"signature": "q: shopping.T -> a"}, "'signature' cannot be given"),
        ("shop:Plain", {"signature": "q -> a", "api_base": "http://x"}, "cannot be given"),
        ("shop:Plain", {}, "kwargs do not fit shop:Plain"),
        ("shop:Asks", {"self": 1}, "kwargs do not fit"),
        ("shop:Asks", {"callbacks": []}, "kwargs do not fit"),
        ("shop:Nothing", {"callbacks": []}, "'callbacks' cannot be given"),
        ("shop:asks", {"mark": "x"}, "takes no kwargs"),
    ],
)
def test_arguments_of_a_caller_go_to_named_parameters_of_the_users_own_constructor(shop, path, kwargs, says):
    error = refusal(host(), path, kwargs=kwargs)
    assert isinstance(error, InvalidRequest)
    assert says in error.message
    assert shop() == []


def test_a_constructor_that_is_dspys_own_takes_no_arguments(shop):
    class_of_dspy = host(allowed_callables={"programs": ["shop:ChainOfThought"]})
    error = refusal(class_of_dspy, "shop:ChainOfThought", kwargs={"rationale_field_type": "shopping.T"})
    assert "kwargs do not fit" in error.message
    open_package = host(allowed_imports=["shop", "dspy.predict"])
    assert (
        "cannot be given"
        in refusal(
            open_package, "dspy.predict:ChainOfThought", kwargs={"signature": "q: shopping.T -> a"}
        ).message
    )
    assert shop() == []


def test_an_import_that_ends_the_process_is_an_error_of_the_program(shop):
    assert isinstance(refusal(host(), "shop.leaves:Asks"), ProgramError)


# --- inputs ---

ATTACKS = {
    "config": {"api_base": "http://attacker.example/v1", "model": "openai/x", "api_key": "k"},
    "signature": "question: shopping.T -> answer",
    "demos": [{"question": "q", "answer": "a"}],
    "lm": "openai/x",
    "prediction": {"type": "content", "content": "x"},
    "new_signature": "question -> answer",
    "max_iters": 10**9,
    "interpreter_factory": "shop:mark",
    "callbacks": [],
    "api_key": "k",
    "api_base": "http://attacker.example/v1",
    "custom_llm_provider": "x",
    "extra_headers": {"x": "y"},
    "_trace": False,
    "__class__": "x",
    "self": 1,
    "instance": 1,
}
FROM_PATHS = ("cot", "predict", "agent", "best", "Takes", "Chain", "Asks", "Optional", "Overrides", "Marks")


@pytest.mark.parametrize("name", [*ATTACKS, *sorted(RESERVED - ATTACKS.keys())])
async def test_a_reserved_name_is_no_input_of_any_program_however_it_is_run(shop, name):
    tested = host()
    session = Session(tested, "s")
    inputs = {"question": "?", name: ATTACKS.get(name, "x")}
    programs = [f"pool_{one}" for one in FROM_PATHS]
    for one in FROM_PATHS:
        tested.deploy(Deployment(f"pool_{one}", 1, import_path=f"shop:{one}"))
        tested.run_inline(CreateProgram(f"own_{one}", import_path=f"shop:{one}"), session)
    for module in ("Predict", "ChainOfThought", "ReAct", "MultiChainComparison"):
        tested.deploy(Deployment(f"spec_{module}", 1, spec={**QA, "module": module}))
        programs.append(f"spec_{module}")
    made = shop()

    async def emit(event: Any) -> None:
        raise AssertionError("nothing may come of it")

    for program, owner in [*((p, None) for p in programs), *((f"own_{p}", session) for p in FROM_PATHS)]:
        for command in (ExecuteProgram(program, inputs), StreamProgram(program, inputs)):
            with pytest.raises(InvalidRequest) as error:
                tested.run_inline(command, owner)
            assert repr(name) in error.value.message
            with pytest.raises(InvalidRequest):
                tested.run_thread(command, owner)
            with pytest.raises(InvalidRequest):
                await tested.run_async(command, owner, emit)
    assert shop() == made


@pytest.mark.parametrize("name", sorted({*RESERVED, "_x"}))
def test_a_reserved_name_is_no_field_of_a_signature(name):
    for signature in (
        f"question, {name} -> answer",
        f"question: str, {name}: dict[str, Any] -> answer",
        {"inputs": ["question", {"name": name, "type": "str"}], "outputs": ["answer"]},
    ):
        for module in ("Predict", "ReAct"):
            with pytest.raises(InvalidRequest, match="reserved"):
                host().load(Definition(spec={"signature": signature, "module": module}))


@pytest.mark.parametrize(
    ("path", "given"),
    [
        ("predict", ["question"]),
        ("cot", ["question"]),
        ("agent", ["question"]),
        ("best", ["question"]),
        ("Takes", ["question"]),
        ("Chain", ["style", "question", "context"]),
        ("Overrides", ["question", "style"]),
        ("Optional", ["question"]),
        ("Crawls", ["base_url"]),
    ],
)
def test_open_inputs_are_those_of_the_programs_signatures(shop, path, given):
    loaded = host().load(Definition(import_path=f"shop:{path}"))
    loaded.check_inputs(dict.fromkeys(given, "x"))
    for other in ("n", "temperature", "trajectory" if path in ("cot", "agent") else "rollout_id"):
        with pytest.raises(InvalidRequest, match=f"unknown input '{other}'; the inputs are "):
            loaded.check_inputs({**dict.fromkeys(given, "x"), other: 1})


@pytest.mark.parametrize("path", ["predict", "cot", "agent"])
def test_an_input_of_dspys_own_modules_is_missed(shop, path):
    with pytest.raises(InvalidRequest, match="'question' is missing"):
        host().load(Definition(import_path=f"shop:{path}")).check_inputs({})


def test_open_inputs_without_a_signature_are_the_programs_own_business(shop):
    host().load(Definition(import_path="shop:Marks")).check_inputs({"anything": 1})


def test_a_program_that_needs_an_input_of_a_reserved_name_says_so_when_it_is_loaded(shop):
    assert "needs 'config'" in refusal(host(), "shop:Required").message
    compared = refusal(host(allowed_imports=["shop", "dspy.predict"]), "shop:Nothing")
    assert "has no forward" in compared.message


def test_the_nearest_form_of_a_program_runs(shop):
    loaded = host().load(Definition(import_path="shop:Overrides"))
    assert loaded.way == "thread"
    assert host().load(Definition(import_path="shop:cot")).way == "async"


def test_a_callers_input_never_reaches_the_model_call_as_a_setting(shop, monkeypatch):
    """The promise itself, without our list of names: no key of the inputs arrives as more than text."""
    seen: list[dict[str, Any]] = []
    monkeypatch.setattr(
        dspy.ChatAdapter, "__call__", lambda self, lm, lm_kwargs, *a, **k: seen.append(lm_kwargs)
    )
    tested = host()
    tested.deploy(Deployment("cot", 1, import_path="shop:cot"))
    for name, value in ATTACKS.items():
        with pytest.raises(InvalidRequest):
            tested.run_thread(ExecuteProgram("cot", {"question": "?", name: value}), None)
    assert seen == []


# --- what is a caller's to ask ---


@pytest.mark.parametrize(
    ("command", "names"),
    [
        (CreateProgram("p", import_path="shop:Asks"), True),
        (CreateProgram("p", spec={**QA, "settings": {"tools": ["shop:mark"]}}), True),
        (CreateProgram("p", spec={**QA, "settings": {"reward": "shop:mark"}}), True),
        (CreateProgram("p", spec={**QA, "module": "ReAct", "settings": {"tools": []}}), False),
        (CreateProgram("p", spec={**QA, "settings": {"temperature": 1.0}}), False),
        (CreateProgram("p", spec={**QA, "settings": "tools"}), False),
        (CreateProgram("p", spec=QA), False),
        (CreateProgram("p"), False),
    ],
)
def test_a_creation_says_whether_it_names_code(command, names):
    assert command.names_imports is names


# --- one module decides ---

ROOT = Path(__file__).parents[2]
SOURCES = ("actors/dspool", "serve_app/dspool_serve", "serve_app/dspool_console")
RUNNERS = re.compile(
    r"(.*\.)?(import_module|__import__|reload|exec_module|load_module|find_spec|locate|resolve_name|run_path|run_module)"
    r"|eval|exec|compile|(operator\.)?attrgetter|(pickle|cloudpickle|dill|marshal|shelve)\.\w+"
    r"|yaml\.(load|load_all|full_load|unsafe_load)|(.*\.)?(Unpickler|ImportString)"
)
"""What makes code or objects of text or bytes, wherever they come from."""
TEXT_TO_CODE = {
    "dspool/programs/imports.py": "import paths: it decides which",
    "dspool/programs/settings.py": "what `imports` decided on, steps of the warm-up, `setup`: for what they configure",
    "dspool/programs/saved.py": "programs that DSPy saved with their code, in directories that the configuration names",
    "dspool/programs/sources.py": "looks for the files of allowed_imports, and imports nothing",
    "dspool/programs/program.py": "copies the default configuration through pickle, from a process to itself",
    "dspool/programs/sessions/code.py": "execute_code, for those who may run code in the cluster anyway",
    "dspool/programs/sessions/sandbox/inside.py": "execute_code over HTTP, inside of the sandbox",
    "dspool/programs/models/transport.py": "modules of DSPy's transport, by names of its own",
    "dspool/runtime/unfinished.py": "what this pool kept in the cluster, whose token opens all of it anyway",
    "dspool/runtime/forkserver/preload.py": "modules that the configuration names, before workers are forked",
    "dspool/runtime/forkserver/parent.py": "Ray's own worker program, compiled once for all",
    "dspool/runtime/forkserver/child.py": "Ray's own worker program, as Ray started it",
    "dspool/cli/named_source.py": "looks where the code is that the command line names",
    "dspool/cli/new.py": "looks whether there is a package of the name that the command line has",
    "dspool/cli/trial_pool.py": "the configuration, to a process that it starts, over a pipe",
    "dspool/cli/trial_process.py": "the configuration, from the process that started it, over a pipe",
    "dspool/cli/evaluation/examples.py": "the metric that the command line names, in the process of its user",
    "dspool/local/channel.py": "messages between a process and the workers that it started, over a pipe",
    "dspool/config/load.py": "the configuration, with a loader that makes plain data only",
    "dspool/telemetry/trace_export.py": "one of two exporters",
    "dspool/corrections/dspy_calls.py": "modules of DSPy that it names itself",
    "dspool/__init__.py": "public names, from a table",
    "dspool/testing/__init__.py": "public names, from a table",
    "dspool_serve/ingress/deployment.py": "the console, which it must not know",
    "dspool_console/dashboard/files.py": "the file of the chart library",
}
"""The only files that hand one of these anything but a constant, and why they may."""


def test_only_these_files_make_code_or_objects_of_text():
    found = set()
    for folder in SOURCES:
        for file in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(file.read_text())):
                if not isinstance(node, ast.Call) or not RUNNERS.fullmatch(ast.unparse(node.func)):
                    continue
                of = [*node.args, *(keyword.value for keyword in node.keywords)][0]
                fixed = isinstance(of, ast.Constant) or (isinstance(of, ast.Name) and of.id.isupper())
                if not fixed:
                    found.add(str(file.relative_to(ROOT)).partition("/")[2])
    assert found == TEXT_TO_CODE.keys()
