"""What holds for every sizing decision, whatever was observed."""

from __future__ import annotations

import itertools
import math

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dspool.core.autoscale.demand import KEEP_SWITCHES, Demand, erlang_c_slots
from dspool.core.autoscale.inputs import Peak, Score, SizingConfig, SizingInputs, SizingState, Window
from dspool.core.autoscale.policies import POLICIES, largest
from dspool.core.autoscale.sizing import decide, kept, last_needed

# No deadlines: the machine may be busy.
UNHURRIED = settings(deadline=None)
SETTLING = settings(max_examples=20, deadline=None)

seconds = st.floats(0, 1e4, allow_nan=False)
counts = st.integers(0, 5000)

windows = st.builds(
    Window,
    span_s=st.one_of(st.just(0.0), st.floats(0.1, 120)),
    arrivals=counts,
    finished=counts,
    busy_slot_s=seconds,
    run_s=seconds,
    peak_demand=counts,
    started=counts,
    over_wait=counts,
    wait_p99_s=seconds,
    model_errors=st.integers(0, 20),
)
observations = st.builds(
    SizingInputs,
    age_s=st.one_of(st.none(), st.floats(0, 20)),
    slots_per_worker=st.integers(1, 64),
    desired=st.integers(0, 60),
    actual=st.integers(0, 60),
    starting=st.integers(0, 20),
    overflow=st.integers(0, 20),
    running=counts,
    queued=counts,
    oldest_wait_s=seconds,
    start_delay_s=st.floats(0, 60),
    short=windows,
    long=windows,
)
configs = st.builds(
    lambda low, more, overflow, target: SizingConfig(
        min_size=low, max_size=low + more, max_overflow=overflow, target_utilization=target
    ),
    st.integers(1, 10),
    st.integers(0, 40),
    st.integers(0, 10),
    st.floats(0.1, 0.95),
)


def load_of(load, span_s, *, peak, service_s=0.5):
    count = round(load * span_s / service_s)
    return Window(
        span_s=span_s, arrivals=count, finished=count, started=count, busy_slot_s=load * span_s, run_s=count
        * service_s, peak_demand=peak
    )  # fmt: skip


def calm(load, size, **fields):
    peak = math.ceil(load)
    given = {
        "age_s": 0.1, "slots_per_worker": 8, "desired": size, "actual": size, "running": min(peak, 8 * size),
        "short": load_of(load, 1.0, peak=peak), "long": load_of(load, 60.0, peak=peak),
    }  # fmt: skip
    return SizingInputs(**(given | fields))


@UNHURRIED
@given(configs, st.lists(st.tuples(observations, st.floats(0, 100)), min_size=1, max_size=8))
def test_target_and_overflow_never_leave_their_bounds_and_there_is_always_a_reason(config, sequence):
    state, now = SizingState(), 0.0
    for seen, later in sequence:
        now += later
        decision, state = decide(config, seen, state, now=now)
        assert config.min_size <= decision.target <= config.max_size
        assert 0 <= decision.overflow <= config.max_overflow
        assert decision.reason
        assert all(math.isfinite(value) for value in decision.numbers.values())
        moved = (decision.target > seen.desired) - (decision.target < seen.desired)
        assert decision.action == ("hold", "grow", "shrink")[moved]


@UNHURRIED
@given(configs, observations)
def test_the_same_question_gets_the_same_answer(config, seen):
    assert decide(config, seen, SizingState(), now=5.0) == decide(config, seen, SizingState(), now=5.0)


@UNHURRIED
@given(configs, observations, st.one_of(st.none(), st.floats(3.01, 1e6)))
def test_missing_and_stale_data_hold(config, seen, age):
    seen = msgspec.structs.replace(seen, age_s=age)
    decision, _ = decide(config, seen, SizingState(), now=1e6)
    assert decision.target == min(config.max_size, max(config.min_size, seen.desired))
    assert not decision.numbers


@UNHURRIED
@given(configs, observations, st.integers(1, 5000), st.floats(0.1, 1.0))
def test_errors_of_the_model_endpoint_never_grow_the_pool(config, seen, finished, share):
    failing = Window(
        span_s=1.0, arrivals=seen.short.arrivals, finished=finished, model_errors=math.ceil(finished *
        share), peak_demand=5000
    )  # fmt: skip
    seen = msgspec.structs.replace(seen, short=failing)
    decision, _ = decide(config, seen, SizingState(), now=10.0)
    assert decision.target <= max(seen.desired, config.min_size)


@UNHURRIED
@given(st.floats(0, 300), st.floats(0, 100), st.integers(1, 40))
def test_more_load_never_asks_for_less(load, more, size):
    config = SizingConfig(min_size=1, max_size=1000)
    state = SizingState(first_at=0.0, called_at=999.5, needed_at=(0.0,) * 100)
    less, _ = decide(config, calm(load, size), state, now=1000.0)
    greater, _ = decide(config, calm(load + more, size), state, now=1000.0)
    assert greater.target >= less.target


@UNHURRIED
@given(st.floats(0, 100), st.integers(1, 12), st.integers(0, 300), st.integers(0, 300))
def test_a_longer_queue_never_asks_for_less(load, size, queued, more):
    config = SizingConfig(min_size=1, max_size=1000)
    state = SizingState(first_at=0.0, called_at=999.5, needed_at=(0.0,) * 100)

    def target(length):
        seen = calm(load, size, queued=length, running=8 * size, oldest_wait_s=0.5 if length else 0.0)
        return decide(config, seen, state, now=1000.0)[0].target

    assert target(queued + more) >= target(queued)


@UNHURRIED
@given(
    st.floats(0.1, 200),
    st.integers(1, 40),
    st.floats(0, 700),
    st.floats(1, 300),
    st.lists(st.tuples(st.floats(0, 100), st.floats(0, 1e5)), min_size=len(POLICIES), max_size=len(POLICIES)),
    st.floats(0, 100),
)
def test_it_never_shrinks_below_what_the_policy_that_it_says_it_follows_keeps_of_a_peak(
    load, size, age, slots, scores, late
):
    config = SizingConfig(min_size=1, max_size=1000)
    state = SizingState(
        peaks=(Peak(1000 - age, 1000 - age, slots),),
        scores=tuple(Score(*score) for score in scores),
        started=5000.0,
        late=late,
        first_at=0.0,
        called_at=999.5,
        needed_at=(0.0,) * 100,
    )
    decision, _ = decide(config, calm(load, size), state, now=1000.0)
    n = decision.numbers
    # What it holds, less the shrink cooldown: for that long each worker stays by itself.
    kept = slots * (age <= n["plan_hold_s"] - 3.0) + n["plan_spare"] * 8
    kept = max(kept, n["need_headroom"], n["need_utilization"])
    assert decision.target * 8 >= kept - 0.01 or decision.target >= size


@UNHURRIED
@given(st.floats(0, 700), st.floats(0, 200), st.floats(0, 200))
def test_a_larger_peak_in_memory_never_asks_for_less(age, slots, more):
    for policy in POLICIES:
        smaller = largest((Peak(1000 - age, 1000 - age, slots),), policy.hold_s, 1000.0)
        larger = largest((Peak(1000 - age, 1000 - age, slots + more),), policy.hold_s, 1000.0)
        assert larger >= smaller


@SETTLING
@given(st.floats(0.5, 60), st.integers(1, 12), st.integers(0, 2**31))
def test_a_steady_demand_converges_and_stays(load, start, seed):
    config = SizingConfig(min_size=1, max_size=64)
    state, size, sizes, now = SizingState(), start, [], 0.0
    jitter = seed
    for _ in range(800):
        # A peak that wobbles by a tenth around the load, from a fixed sequence.
        jitter = (jitter * 1103515245 + 12345) % 2**31
        peak = math.ceil(load * (1 + 0.1 * jitter / 2**31))
        queued = max(0, peak - 8 * size)
        seen = calm(
            min(load, 8.0 * size), size, queued=queued, oldest_wait_s=0.3 if queued else 0.0,
            short=msgspec.structs.replace(load_of(min(load, 8.0 * size), 1.0, peak=peak),
            arrivals=round(load / 0.5)),
        )  # fmt: skip
        decision, state = decide(config, seen, state, now=now)
        size = decision.target
        sizes.append(size)
        now += 0.5
    assert len(set(sizes[-300:])) == 1
    assert sizes[-1] * 8 >= load
    # Neither more than the target band and head-room ask for, and a worker.
    assert sizes[-1] * 8 <= max(load * 1.1 / 0.8, erlang_c_slots(load, 0.5, 0.1)) + 16


# --- what shrinking costs at worst, in the model of docs/explanation/sizing.md ---


def cost(sizes, step_s, switch_s):
    """Worker-seconds, with `switch_s` for each start; the first size is there already."""
    starts = sum(max(0, after - before) for before, after in itertools.pairwise(sizes))
    return step_s * sum(sizes) + switch_s * starts


def best_cost(needs, step_s, switch_s):
    """The exact optimum over all schedules with at least `needs`, by dynamic programming."""
    sizes = range(max(needs) + 1)
    costs = {needs[0]: step_s * needs[0]}
    for need in needs[1:]:
        costs = {
            size: step_s * size + min(c + switch_s * max(0, size - before) for before, c in costs.items())
            for size in sizes
            if size >= need
        }
    return min(costs.values())


@UNHURRIED
@given(
    st.lists(st.tuples(st.integers(0, 4), st.integers(1, 2), st.integers(0, 12)), min_size=1, max_size=12),
    st.sampled_from([0.5, 1.0, 2.0, 3.5]),
)
def test_letting_workers_go_costs_at_most_three_times_the_best_schedule_that_knew_all_needs(spells, switch_s):
    needs = [0]
    for need, times, quiet in spells:
        needs += [need] * times + [0] * quiet
    needed_at, sizes = (), [0]
    for step, need in enumerate(needs[1:]):
        now = 0.5 * step
        needed_at = last_needed(needed_at, need, sizes[-1], now)
        sizes.append(max(need, kept(needed_at, KEEP_SWITCHES * switch_s, now)))
        needed_at = needed_at[: sizes[-1]]
    assert all(size >= need for size, need in zip(sizes, needs, strict=True))
    assert cost(sizes, 0.5, switch_s) <= (1 + KEEP_SWITCHES) * best_cost(needs, 0.5, switch_s) + 1e-9


def test_that_bound_is_tight():
    # Needed for a moment, again and again, each time when it has just gone.
    needs = [0] + ([1] + [0] * 200) * 50
    needed_at, sizes = (), [0]
    for step, need in enumerate(needs[1:]):
        needed_at = last_needed(needed_at, need, sizes[-1], 0.5 * step)
        sizes.append(max(need, kept(needed_at, KEEP_SWITCHES * 40.0, 0.5 * step)))
        needed_at = needed_at[: sizes[-1]]
    assert cost(sizes, 0.5, 40.0) / best_cost(needs, 0.5, 40.0) == pytest.approx(3, rel=0.02)


@SETTLING
@given(st.lists(st.tuples(st.floats(0, 40), st.integers(1, 8)), min_size=1, max_size=12))
def test_decisions_keep_that_bound_for_the_needs_that_they_name(loads):
    config = SizingConfig(min_size=1, max_size=1000, grow_cooldown_s=0.0, shrink_cooldown_s=0.0)
    state, sizes, needs, now = SizingState(first_at=-100.0), [1], [1], 0.0
    for load in (load for load, times in loads for _ in range(times)):
        seen = calm(load, sizes[-1])
        needs.append(max(1, Demand(config, seen, state, now).need[0]))
        decision, state = decide(config, seen, state, now=now)
        sizes.append(decision.target)
        now += config.interval_s
    assert all(size >= need for size, need in zip(sizes, needs, strict=True))
    switch_s = 1.0 + 0.5
    assert cost(sizes, 0.5, switch_s) <= (1 + KEEP_SWITCHES) * best_cost(needs, 0.5, switch_s) + 1e-9


@UNHURRIED
@given(st.floats(0.01, 500), st.floats(0.001, 60), st.floats(0, 10))
def test_the_headroom_is_above_the_load_and_shrinks_with_a_laxer_objective(load, service_s, objective):
    strict = erlang_c_slots(load, service_s, objective)
    assert strict > load
    assert erlang_c_slots(load, service_s, objective + 1) <= strict
