"""What a configuration is: frozen, the same after a journey, and on the page of settings with every key."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from pathlib import Path

import pytest

from dspool.config import (
    CustomCode,
    ImportModules,
    LMProfile,
    PoolConfig,
    Probe,
    ProgramConfig,
    ServiceConfig,
    WarmupConfig,
    load_config,
    reference_table,
)
from dspool.config.environment import OTHER_VARIABLES
from dspool.errors import ConfigError

FAST = {"fast": {"model": "openai/some-model"}}
QA = {"qa": {"spec": {"signature": "question -> answer"}}}


# --- what it is ---


def test_the_defaults_are_valid_and_frozen():
    config = PoolConfig()
    assert (config.pool_size, config.min_ready, config.programs) == (2, 1, {})
    with pytest.raises(ValueError, match="frozen"):
        config.pool_size = 3


def test_positional_arguments_are_refused():
    with pytest.raises(TypeError):
        WarmupConfig("staged")
    with pytest.raises(TypeError):
        PoolConfig(3)


def test_it_pickles_with_every_kind_of_part():
    config = PoolConfig(
        programs={"qa": ProgramConfig(import_path="pkg.mod:Program", kwargs={"k": [1]}, lm="fast")},
        allowed_imports=("pkg",),
        lm_profiles={"fast": LMProfile(model="m", extra={"seed": 1})},
        warmup=WarmupConfig(
            steps=(ImportModules(modules=("json",)), Probe(program="qa"), CustomCode(import_path="pkg:warm"))
        ),
        state_dir=Path("/tmp/state"),
    )
    copy = pickle.loads(pickle.dumps(config))
    assert copy == config
    assert [type(step) for step in copy.warmup.steps] == [ImportModules, Probe, CustomCode]


def test_it_goes_through_json_unchanged():
    config = PoolConfig(
        programs=QA, lm_profiles=FAST, default_lm="fast", warmup={"steps": [{"step": "load_programs"}]}
    )
    assert PoolConfig(**json.loads(config.model_dump_json())) == config


def test_with_nothing_configured_the_pool_answers_questions():
    assert PoolConfig.default().programs["qa"].spec == {
        "signature": "context, question -> answer",
        "module": "Predict",
    }
    assert load_config(environ={}).config == PoolConfig.default()


def test_an_override_is_held_to_the_rules_and_leaves_the_rest(monkeypatch):
    config = PoolConfig(pool_size=4, warmup={"strategy": "staged", "min_ready": 2})
    monkeypatch.setenv("DSPOOL_MAX_QUEUE", "5")
    changed = config.override(warmup={"min_ready": 3}, service=ServiceConfig(port=1))
    assert (changed.warmup.strategy, changed.min_ready, changed.service.port) == ("staged", 3, 1)
    assert changed.max_queue == config.max_queue
    with pytest.raises(ConfigError, match="pool_size=9"):
        config.override(pool_size=9)


@pytest.mark.parametrize(
    ("path", "allowed"),
    [("pkg:X", True), ("pkg.sub.mod:X", True), ("pkgs:X", False), ("other.pkg:X", False), ("", False)],
)
def test_an_import_path_is_allowed_below_a_listed_package_only(path, allowed):
    assert PoolConfig(allowed_imports=("pkg",)).allows_import(path) is allowed


def test_a_lazy_pool_may_be_ready_without_a_worker():
    assert PoolConfig(lazy=True, warmup={"min_ready": 0}).min_ready == 0


def test_spans_that_are_multiples_in_decimals_are_accepted():
    PoolConfig(
        metrics_interval_s=0.1,
        metrics_flush_interval_s=0.1,
        history={"fine_interval_s": 0.3, "fine_span_s": 900, "coarse_interval_s": 0.9, "coarse_span_s": 1800},
    )


def test_importing_it_loads_neither_ray_nor_dspy():
    code = "import sys, dspool.config; print(sorted({'ray', 'dspy', 'litellm'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# --- documentation ---


def test_every_key_is_in_the_reference_with_a_meaning_and_its_variable():
    rows = [line.split(" | ") for line in reference_table().splitlines()[2:]]
    names = [row[0].strip("|` ").split("`<br>`") for row in rows]
    assert {key.split(".")[0] for key, _ in names} == set(PoolConfig.model_fields)
    assert all(variable.startswith("DSPOOL_") for _, variable in names)
    for row in rows:
        assert len(row[3].strip("| ")) > 10, f"no meaning: {row[0]}"


def test_the_settings_page_holds_every_key_and_every_variable_that_is_none():
    page = (Path(__file__).parents[2] / "docs" / "reference" / "settings.md").read_text()
    assert reference_table() in page, "run: make generated"
    for name, meaning in OTHER_VARIABLES.items():
        assert f"| `{name}` | {meaning}. |" in page


def test_a_variable_that_is_no_key_changes_nothing():
    assert load_config(environ={"DSPOOL_TEST_POSTGRES_URL": "x"}).config == PoolConfig.default()
