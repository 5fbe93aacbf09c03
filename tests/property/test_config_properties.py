"""Invariants of the configuration over all values: it holds its rules or it is refused, and copies are equal."""

import pickle
import string

from hypothesis import given
from hypothesis import strategies as st

from dspool.config import PoolConfig, load_config
from dspool.errors import ConfigError

sizes = st.integers(-2, 20)
seconds = st.one_of(st.floats(0.001, 100), st.sampled_from([0.0, -1.0]))
anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
values = st.fixed_dictionaries(
    {},
    optional={
        **dict.fromkeys(("pool_size", "min_pool_size", "max_pool_size", "max_overflow", "spares"), sizes),
        **dict.fromkeys(
            (
                "checkout_timeout_s",
                "operation_timeout_s",
                "max_wait_s",
                "init_timeout_s",
                "health_check_timeout_s",
            ),
            seconds,
        ),
        "lazy": st.booleans(),
        "warmup": st.fixed_dictionaries({}, optional={"min_ready": sizes, "worker_deadline_s": seconds}),
    },
)


def built(keys) -> PoolConfig | None:
    try:
        return PoolConfig(**keys)
    except ConfigError:
        return None


@given(values)
def test_what_is_accepted_keeps_the_rules_between_keys(keys):
    config = built(keys)
    if config is None:
        return
    assert 1 <= config.min_pool_size <= config.pool_size <= config.max_pool_size
    assert 0 <= config.min_ready <= config.pool_size
    assert config.lazy or config.min_ready >= 1
    assert max(config.spares, config.max_overflow) <= config.max_pool_size
    assert 0 < config.max_wait_s <= config.checkout_timeout_s <= config.operation_timeout_s
    assert config.warmup.worker_deadline_s <= config.init_timeout_s
    assert config.health_check_timeout_s <= config.health_check_interval_s


@given(values)
def test_nothing_that_was_given_is_changed(keys):
    config = built(keys)
    if config is not None:
        for key, value in keys.items():
            held = getattr(config, key)
            assert held == value or (key == "warmup" and held.model_dump(exclude_unset=True) == value)


@given(values)
def test_a_copy_by_pickle_or_by_its_own_values_is_equal(keys):
    config = built(keys)
    if config is not None:
        assert pickle.loads(pickle.dumps(config)) == config
        assert PoolConfig(**config.model_dump(mode="json")) == config
        assert config.override() == config


@given(st.sampled_from(sorted(PoolConfig.model_fields)), anything)
def test_any_value_of_any_key_is_accepted_or_refused_by_name_and_never_crashes(key, value):
    refused = None
    try:
        PoolConfig(**{key: value})
    except ConfigError as error:
        refused = error
    assert refused is None or (refused.details["key"] and refused.details["rule"])


@given(
    st.dictionaries(
        st.sampled_from(sorted(PoolConfig.model_fields)).map(lambda key: f"DSPOOL_{key.upper()}")
        | st.text(string.ascii_uppercase + "_", min_size=1, max_size=8).map(lambda rest: f"DSPOOL_{rest}"),
        st.text(max_size=8),
        max_size=3,
    )
)
def test_any_environment_is_accepted_or_refused_and_never_crashes(environ):
    try:
        loaded = load_config(environ=environ)
    except ConfigError:
        return
    assert set(loaded.sources) == {row.key for row in loaded.rows()}
