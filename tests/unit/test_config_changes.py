"""What happens when a setting of a running service changes: every setting has a rule, and each shows in the plan."""

from __future__ import annotations

import pytest
from pydantic import BaseModel

from dspool.config import PoolConfig
from dspool.core.lifecycle import config_changes
from dspool.core.lifecycle.setting_rules import PARTS, REFUSED

SPEC = {"signature": "question -> answer"}
BASE = {"programs": {"qa": {"spec": SPEC}}, "lm_profiles": {"a": {"model": "offline", "engine": "offline"}}}


def settings(model: type[BaseModel], prefix: str = ""):
    for name, field in model.model_fields.items():
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            yield from settings(inner, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"


ALL = list(settings(PoolConfig))


def test_every_setting_has_one_rule_and_every_rule_a_setting():
    assert sorted([*PARTS, *REFUSED]) == sorted(ALL)


def test_the_settings_of_a_configuration_are_those_of_the_model():
    assert [setting for setting, _ in config_changes.settings_of(PoolConfig())] == ALL


@pytest.mark.parametrize("setting", ALL)
def test_each_setting_says_how_it_changes(setting):
    how = config_changes.how(setting)
    if setting in REFUSED:
        assert (how, REFUSED[setting] != "") == ("refused", True)
    else:
        assert ("workers" in how, "ingress" in how) == (
            "workers" in PARTS[setting],
            "ingress" in PARTS[setting],
        )


@pytest.mark.parametrize(
    ("change", "setting", "how", "parts"),
    [
        ({"pool_size": 3}, "pool_size", "in place", ("supervisor",)),
        ({"max_wait_s": 0.2}, "max_wait_s", "in place", ("metrics", "supervisor")),
        (
            {"telemetry": {"log_level": "debug"}},
            "telemetry.log_level",
            "in place",
            ("running workers", "supervisor"),
        ),
        ({"limits": {"max_sessions": 5}}, "limits.max_sessions", "in place", ("store",)),
        ({"slots_per_worker": 4}, "slots_per_worker", "new workers", ("workers",)),
        ({"preload": ("json",)}, "preload", "new workers", ("workers",)),
        ({"max_queue": 5}, "max_queue", "new ingress", ("ingress",)),
        (
            {"telemetry": {"sampling": 0.5}},
            "telemetry.sampling",
            "new workers and ingress",
            ("ingress", "workers"),
        ),
        ({"service": {"port": 1234}}, "service.port", "refused", ()),
        ({"state_dir": "/tmp/elsewhere"}, "state_dir", "refused", ()),
        (
            {"programs": {"qa": {"spec": SPEC}, "more": {"spec": SPEC}}},
            "programs",
            "new workers",
            ("workers",),
        ),
    ],
)
def test_a_change_is_planned_with_what_it_needs(change, setting, how, parts):
    before = PoolConfig(**BASE)
    [planned] = config_changes.changes({"default": before}, {"default": before.override(**change)})
    assert planned.deed == "change"
    assert [(one.setting, one.how) for one in planned.settings] == [(setting, how)]
    assert planned.parts == parts
    assert [one.setting for one in planned.refused] == ([setting] if how == "refused" else [])
    assert f"    {setting}: " in config_changes.text_of([planned])


def test_pools_that_are_new_go_or_stay_are_said_as_such():
    a, b = PoolConfig(name="a"), PoolConfig(name="b")
    plan = config_changes.changes({"a": a, "b": b}, {"b": b, "c": PoolConfig(name="c")})
    assert [(one.pool, one.deed) for one in plan] == [("a", "remove"), ("b", "keep"), ("c", "add")]
    said = "- pool a: ends: its operations finish first\n+ pool c: new"
    assert config_changes.text_of(plan) == said
    assert config_changes.text_of(config_changes.changes({"b": b}, {"b": b})) == "nothing differs"


def test_no_value_that_may_be_a_secret_is_shown():
    hidden = "Zanzibar4471"
    before = PoolConfig(**BASE)
    after = before.override(
        store_url=f"postgresql://dspool:{hidden}@db.example/dspool",
        lm_profiles={"a": {"model": "openai/m", "extra": {"organization": hidden}}},
    )
    plan = config_changes.changes({"default": before}, {"default": after})
    assert {one.setting for one in plan[0].settings} == {"store_url", "lm_profiles"}
    assert hidden not in repr(plan) + config_changes.text_of(plan)


def test_workers_are_told_apart_by_the_settings_that_they_have_from_their_start():
    before = PoolConfig(**BASE)
    mark = config_changes.worker_settings(before, "secret")
    assert config_changes.worker_settings(before.override(pool_size=3, max_queue=7), "secret") == mark
    assert config_changes.worker_settings(before.override(slots_per_worker=3), "secret") != mark
    assert config_changes.worker_settings(before, "other") != mark


LOADED = {"import_path": "shop:Orders", "kwargs": {"k": 2}}


@pytest.mark.parametrize(
    "change",
    [
        {"programs": {"qa": {**LOADED, "kwargs": {"k": 3}}}},
        {"programs": {"qa": {**LOADED, "idempotent": False}}},
        {"lm_profiles": {"a": {"model": "offline", "engine": "offline", "extra": {"top_k": 3}}}},
        {"lm_profiles": {"a": {"model": "offline", "engine": "offline", "temperature": 0.5}}},
        {"slots_per_worker": 4},
    ],
    ids=str,
)
def test_whatever_differs_for_workers_gives_them_another_mark_also_if_it_is_never_shown(change):
    base = {**BASE, "allowed_imports": ["shop"], "programs": {"qa": LOADED}}

    def mark(more):
        return config_changes.worker_settings(PoolConfig(**{**base, **more}), "k")

    assert mark(change) != mark({})
    assert mark(change) == mark(change)
