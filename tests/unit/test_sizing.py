"""Sizing decisions: each mistake of the seed's optimizer, put right."""

from __future__ import annotations

import math
from types import SimpleNamespace

import msgspec
import pytest

from dspool.core.autoscale.demand import remember
from dspool.core.autoscale.inputs import Score
from dspool.core.autoscale.policies import POLICIES, LoadSample, Policy, choose, judge
from dspool.core.autoscale.sizing import (
    Peak,
    SizingConfig,
    SizingInputs,
    SizingState,
    Window,
    decide,
    erlang_c_slots,
    kept,
    last_needed,
)
from dspool.messages.versioned_pickle import rebuilt

CONFIG = SizingConfig(min_size=1, max_size=10, max_overflow=4)
SETTLED = SizingState(first_at=0.0, called_at=999.5, needed_at=(500.0,) * 20, grew_at=500.0)
NOW = 1000.0


def window(span_s, load, *, service_s=0.5, peak=None, over_wait=0, model_errors=0):
    """A window in which `load` slots were busy on average."""
    count = round(load / service_s * span_s)
    return Window(
        span_s=span_s, arrivals=count, finished=count, started=count, busy_slot_s=load * span_s, run_s=count
        * service_s, peak_demand=math.ceil(load) if peak is None else peak, over_wait=over_wait,
        model_errors=model_errors,
    )  # fmt: skip


def observed(load, *, size, service_s=0.5, short=None, long=None, **fields):
    given = {
        "age_s": 0.2,
        "slots_per_worker": 8,
        "desired": size,
        "actual": size,
        "running": min(size * 8, math.ceil(load)),
        "short": short or window(1.0, load, service_s=service_s),
        "long": long or window(60.0, load, service_s=service_s),
    }
    return SizingInputs(**(given | fields))


def answer(seen, *, config=CONFIG, state=SETTLED, now=NOW):
    return decide(config, seen, state, now=now)[0]


# --- no data, stale data, errors ---


@pytest.mark.parametrize(
    ("seen", "says"),
    [
        (observed(80, size=4, age_s=None), "no data yet"),
        (observed(80, size=4, long=Window()), "no data yet"),
        (observed(80, size=4, age_s=7.5), "data are 7.5 s old"),
        (observed(0, size=4, age_s=7.5), "data are 7.5 s old"),
    ],
)
def test_without_fresh_data_the_size_is_held_with_that_reason(seen, says):
    decision = answer(seen)
    assert (decision.target, decision.action, decision.reason) == (4, "hold", says)


def test_switched_off_it_holds():
    decision = answer(observed(80, size=2), config=msgspec.structs.replace(CONFIG, enabled=False))
    assert (decision.target, decision.reason) == (2, "sizing is switched off")


def test_a_held_size_outside_the_bounds_is_brought_inside():
    assert answer(observed(0, size=30, age_s=None)).target == 10
    assert answer(observed(0, size=0, age_s=None)).target == 1


@pytest.mark.parametrize("which", ["short", "long"])
def test_a_failing_model_endpoint_does_not_grow_the_pool(which):
    failing = {
        which: window(1.0, 16, model_errors=8) if which == "short" else window(60.0, 16, model_errors=400)
    }
    decision = answer(observed(16, size=2, queued=200, oldest_wait_s=3.0, **failing))
    assert decision.target == 2
    assert "fail at the model endpoint" in decision.reason


def test_a_few_model_errors_do_not_stop_growth():
    short = window(1.0, 16, model_errors=1)
    assert answer(observed(16, size=2, queued=200, oldest_wait_s=3.0, short=short)).action == "grow"


# --- growing ---


def test_a_burst_is_answered_by_one_decision():
    short = window(1.0, 16, peak=80)
    burst = msgspec.structs.replace(short, arrivals=90)
    decision = answer(observed(16, size=2, queued=64, oldest_wait_s=0.4, short=burst))
    assert decision.action == "grow"
    assert decision.target >= 6
    assert decision.reason.startswith(("backlog", "recent"))


def test_a_queue_that_is_drained_before_a_worker_could_start_does_not_grow_the_pool():
    # 50 at once, 0.05 s each: 16 slots need 0.16 s, a new worker 1 s.
    short = Window(
        span_s=1.0, arrivals=54, finished=4, started=20, busy_slot_s=1.0, run_s=0.2, peak_demand=50
    )
    seen = observed(0.2, size=3, service_s=0.05, short=short, queued=26, running=24, oldest_wait_s=0.01)
    frugal = tuple(Score(0.0, 1000.0 * i) for i in range(len(POLICIES)))
    seasoned = msgspec.structs.replace(SETTLED, started=5000.0, scores=frugal)
    assert answer(seen, state=seasoned).action == "hold"
    # Nor does the memory of a large burst, long faded, which a backlog would recall.
    large = msgspec.structs.replace(seasoned, peaks=(Peak(500.0, 500.0, 60.0),))
    assert answer(seen, state=large).action == "hold"


def test_a_queue_some_minutes_ago_does_not_count():
    long = window(60.0, 6, peak=100, over_wait=40)
    assert answer(observed(6, size=2, long=long)).action == "hold"


def test_at_ninety_percent_utilization_it_grows_into_the_band_without_waiting_for_a_queue():
    decision = answer(observed(57.6, size=8))
    assert decision.target > 8
    assert 0.6 <= 57.6 / (8 * decision.target) <= 0.8


def test_a_large_pool_keeps_to_three_quarters_where_erlang_alone_would_go_higher():
    config = msgspec.structs.replace(CONFIG, max_size=50)
    decision = answer(observed(100, size=15), config=config)
    assert erlang_c_slots(100, 0.5, 0.1) <= 15 * 8
    assert (decision.target, decision.reason) == (17, "utilization needs 17 workers")


def test_load_that_grows_by_a_sixth_in_half_a_minute_stays_within_the_band():
    config = msgspec.structs.replace(CONFIG, max_size=50)
    # The day of the diurnal workload, pressed into an hour, at its steepest.
    loads = [100 * (7 / 6) ** (0.5 * step / 30) for step in range(361)]
    state, size, used = SETTLED, 17, []
    for step in range(120, 361):
        minute = sum(loads[step - 119 : step + 1]) / 120
        seen = observed(loads[step], size=size, short=window(1.0, loads[step]), long=window(60.0, minute))
        decision, state = decide(config, seen, state, now=NOW + 0.5 * step)
        size = decision.target
        used.append(loads[step] / (8 * size))
    assert max(used[60:]) <= 0.8
    assert min(used) >= 0.6


def test_growth_for_headroom_waits_for_its_cooldown_and_growth_for_a_queue_does_not():
    recent = msgspec.structs.replace(SETTLED, grew_at=NOW - 1)
    assert answer(observed(15, size=2, running=15), state=recent).action == "hold"
    assert "grew 1.0 s ago" in answer(observed(15, size=2, running=15), state=recent).reason
    waiting = observed(16, size=2, queued=100, oldest_wait_s=1.0)
    assert answer(waiting, state=recent).action == "grow"


def test_operations_that_piled_up_in_a_queue_are_not_a_recent_peak():
    short = window(1.0, 16, peak=400, over_wait=30)
    stuck = observed(16, size=2, queued=384, oldest_wait_s=12.0, short=short)
    _, state = decide(CONFIG, stuck, msgspec.structs.replace(SETTLED, offered=16.0), now=NOW)
    assert max(p.slots for p in state.peaks) < 30


# --- the maximum and overflow ---


def test_at_the_maximum_size_overflow_grows():
    decision = answer(observed(80, size=10, queued=200, oldest_wait_s=2.0))
    assert (decision.target, decision.overflow) == (10, 4)
    assert "10 is the maximum" in decision.reason
    assert "4 overflow" in decision.reason


def test_overflow_never_exceeds_its_cap_and_growing_it_never_reduces_it():
    config = msgspec.structs.replace(CONFIG, max_size=2, max_overflow=20)
    decision = answer(observed(16, size=2, overflow=9, queued=30, oldest_wait_s=1.0), config=config)
    assert 9 <= decision.overflow <= 20


def test_idle_overflow_stays_for_its_grace_and_then_goes_by_halves():
    state = msgspec.structs.replace(SETTLED, overflow_needed_at=NOW - 5)
    sizes, now, overflow = [], NOW, 4
    for _ in range(200):
        decision, state = decide(CONFIG, observed(2, size=2, overflow=overflow), state, now=now)
        overflow = decision.overflow
        sizes.append((now - NOW, overflow))
        now += 0.5
    changes = [(t, n) for (t, n), (_, before) in zip(sizes[1:], sizes, strict=False) if n != before]
    assert [n for _, n in changes] == [2, 1, 0]
    assert changes[0][0] == pytest.approx(25.0)
    assert changes[1][0] - changes[0][0] == pytest.approx(7.5)


def test_overflow_that_is_needed_again_gets_its_whole_grace_again():
    state = msgspec.structs.replace(SETTLED, overflow_needed_at=NOW - 29)
    _, state = decide(
        CONFIG, observed(80, size=10, overflow=2, queued=300, oldest_wait_s=2.0), state, now=NOW
    )
    assert state.overflow_needed_at == NOW


# --- shrinking ---


def test_an_idle_pool_shrinks_to_what_it_needs_in_one_step():
    decision = answer(observed(4, size=9))
    assert (decision.target, decision.action) == (2, "shrink")


def test_it_does_not_shrink_while_operations_wait():
    decision = answer(observed(4, size=9, queued=3, oldest_wait_s=0.5))
    assert decision.target == 9
    assert "operations wait" in decision.reason


def test_it_does_not_shrink_below_what_its_policy_keeps_of_the_recent_peak():
    followed = tuple(Score(0.0, 1000.0 * i) for i in range(len(POLICIES)))
    held = msgspec.structs.replace(SETTLED, peaks=(Peak(NOW - 8, NOW - 8, 40.0),), scores=followed)
    # The first policy keeps 0.8 of the peak of 10 s and a quarter of a worker: 34 slots.
    assert answer(observed(2, size=9), state=held).target == 5
    assert answer(observed(2, size=9), state=held).reason == "recent peak needs 5 workers"
    faded = msgspec.structs.replace(held, peaks=(Peak(NOW - 12, NOW - 12, 40.0),))
    assert answer(observed(2, size=9), state=faded).target == 1


def test_operations_that_waited_too_long_are_counted_once_though_windows_overlap():
    late = msgspec.structs.replace(window(1.0, 16, peak=40), over_wait=20)
    seen = observed(16, size=2, queued=20, oldest_wait_s=0.5, short=late)
    assert decide(CONFIG, seen, SETTLED, now=NOW)[1].late == pytest.approx(10)  # the last call was 0.5 s ago


def test_a_worker_stays_until_it_was_not_needed_for_the_cooldown():
    config = msgspec.structs.replace(CONFIG, shrink_cooldown_s=10.0)
    needed = msgspec.structs.replace(SETTLED, needed_at=(NOW,) * 5 + (NOW - 9.5,) * 2 + (NOW - 10.0,) * 2)
    decision = answer(observed(4, size=9), state=needed, config=config)
    assert (decision.target, decision.reason) == (7, "head-room needs 2 workers")
    again = answer(observed(4, size=7), state=needed, config=config)
    assert (again.target, again.reason) == (7, "head-room needs 2 workers, needed 7 9.5 s ago")


def test_a_worker_that_is_dear_to_start_or_to_let_go_stays_longer():
    needed = msgspec.structs.replace(SETTLED, needed_at=(NOW - 20.0,) * 9)
    assert answer(observed(4, size=9), state=needed).target == 2
    assert answer(observed(4, size=9, start_delay_s=10.0), state=needed).target == 9
    assert answer(observed(4, size=9, service_s=10.0), state=needed).target == 9


def test_a_worker_that_somebody_added_counts_as_needed_when_it_came():
    assert last_needed((1.0, 2.0), 1, 4, 9.0) == (9.0, 2.0, 9.0, 9.0)
    assert last_needed((1.0, 2.0, 3.0), 2, 2, 9.0) == (9.0, 9.0)
    assert kept((9.0, 2.0, 9.0, 9.0), 3.0, 9.0) == 4
    assert kept((9.0, 2.0, 2.0), 3.0, 9.0) == 1


def test_it_does_not_shrink_before_it_has_seen_half_a_long_window():
    fresh = msgspec.structs.replace(SETTLED, first_at=NOW - 20)
    assert "too little seen" in answer(observed(4, size=9), state=fresh).reason


# --- the policies for keeping room ---


def load_sample(demand, *, arrived=10.0, before=0.0, late=0.0, slots=0):
    return LoadSample(
        arrived=arrived, started=arrived, late=late, demand=demand, demand_before=before,
        slots_before=slots, elapsed_s=0.5,
    )  # fmt: skip


def judged(demand, *, scores=(), peaks=(), base=(0.0, 0.0), leave_s=0.5, **sample):
    seen = observed(2, size=2)
    return judge(scores, load_sample(demand, **sample), peaks, *base, leave_s, CONFIG, seen, NOW)


def test_a_policy_is_charged_for_what_comes_late_to_the_workers_it_would_have_had_warm():
    scores = judged(20.0)  # nothing known: a quarter, half, ... two workers and the minimum of one
    late = {policy: score.late for policy, score in zip(POLICIES, scores, strict=True)}
    assert late[Policy(10.0, 0.8, 0.25, 0.0)] == pytest.approx(10 * (1 - 8 / 20))
    assert late[Policy(10.0, 0.8, 2.0, 0.0)] == pytest.approx(10 * (1 - 16 / 20))
    known = judged(20.0, peaks=(Peak(NOW - 5, NOW - 5, 30.0),))
    late = {policy: score.late for policy, score in zip(POLICIES, known, strict=True)}
    assert late[Policy(10.0, 1.0, 0.25, 0.0)] == 0.0
    assert late[Policy(1.0, 1.25, 0.5, 0.0)] > 0.0


def test_what_a_policy_would_have_asked_for_a_moment_ago_is_not_warm_yet():
    just_now = judged(40.0, peaks=(Peak(NOW - 0.5, NOW - 0.5, 40.0),))
    long_ago = judged(40.0, peaks=(Peak(NOW - 2.0, NOW - 2.0, 40.0),))
    assert just_now[1].late > 0.0
    assert long_ago[1].late == 0.0


def test_while_a_policy_is_short_already_most_arrivals_come_late_to_it():
    assert judged(20.0, before=20.0)[0].late > judged(20.0)[0].late


def test_what_came_late_in_truth_came_late_to_every_policy_with_no_more_slots():
    scores = judged(4.0, late=3.0, slots=8)
    late = {policy: score.late for policy, score in zip(POLICIES, scores, strict=True)}
    assert late[Policy(10.0, 0.8, 0.25, 0.0)] == 3.0  # one worker, as the pool had
    assert late[Policy(10.0, 0.8, 2.0, 0.0)] == 0.0  # two


def test_a_policy_pays_for_a_worker_until_what_that_runs_has_ended():
    large = tuple(Score(workers=4) for _ in POLICIES)
    shrunk, stayed = judged(4.0, scores=large, leave_s=7.0), judged(4.0, leave_s=7.0)
    assert shrunk[0].workers == stayed[0].workers == 1
    assert shrunk[0].worker_s == pytest.approx(stayed[0].worker_s + 3 * 7.0)


def test_some_policies_do_without_the_headroom():
    workers = {
        policy: score.workers for policy, score in zip(POLICIES, judged(1.0, base=(4.0, 20.0)), strict=True)
    }
    assert workers[Policy(10.0, 0.8, 0.25, 0.0)] == 3
    assert workers[Policy(10.0, 0.8, 0.0, 0.0, headroom=False)] == 1


def test_scores_of_a_version_with_other_policies_are_dropped():
    assert judged(4.0, scores=(Score(late=9.0),) * 3) == judged(4.0)


def test_load_that_lasts_needs_all_of_its_slots_however_short_its_operations_are():
    # 400/s of 0.05 s: 20 slots, though 24 at once could start within the wait objective on 8.
    _, state = decide(CONFIG, observed(20, size=2, service_s=0.05), SETTLED, now=NOW)
    assert state.demand == pytest.approx(20, rel=0.01)
    moment = Window(
        span_s=1.0, arrivals=24, finished=24, started=24, busy_slot_s=1.2, run_s=1.2, peak_demand=24
    )
    _, state = decide(CONFIG, observed(1.2, size=2, service_s=0.05, short=moment), SETTLED, now=NOW)
    assert state.demand == pytest.approx(24 / 3)


def test_the_cheapest_policy_within_the_budget_is_followed():
    scores = [Score(late=50.0 - 5 * i, worker_s=100.0 + 10 * i) for i in range(len(POLICIES))]
    assert choose(scores, late=0.0, started=1700.0) is POLICIES[2]  # 40 late and none really: 20 of 2000
    assert choose(scores, late=20.0, started=1700.0) is POLICIES[6]


def test_headroom_is_not_given_up_before_enough_was_seen():
    scores = [Score(worker_s=1000.0)] * (len(POLICIES) - 1) + [Score(worker_s=500.0)]
    assert choose(scores, late=0.0, started=299.0) is POLICIES[0]
    assert choose(scores, late=0.0, started=300.0) is POLICIES[-1]
    assert not POLICIES[-1].headroom


def test_within_the_budget_a_late_operation_must_save_a_worker_second():
    scores = [Score(late=9.0, worker_s=1000.0)] * (len(POLICIES) - 1) + [Score(late=0.0, worker_s=1008.0)]
    assert choose(scores, late=0.0, started=1700.0) is POLICIES[-1]
    scores[-1] = Score(late=0.0, worker_s=1010.0)
    assert choose(scores, late=0.0, started=1700.0) is POLICIES[0]


def test_where_no_policy_keeps_the_budget_late_operations_have_a_price():
    scores = [Score(late=1000.0, worker_s=1000.0 + i) for i in range(len(POLICIES))]
    assert choose(scores, late=500.0, started=2000.0) is POLICIES[0]
    scores[4] = Score(late=900.0, worker_s=2000.0)
    assert choose(scores, late=500.0, started=2000.0) is POLICIES[4]
    scores[4] = Score(late=900.0, worker_s=4000.0)
    assert choose(scores, late=500.0, started=2000.0) is POLICIES[0]


def test_at_first_a_burst_is_expected_to_become_larger_than_what_came_so_far():
    fresh = msgspec.structs.replace(SETTLED, first_at=NOW - 5, grew_at=None)
    burst = observed(8, size=2, short=window(1.0, 8, peak=16))
    assert answer(burst, state=fresh).target > answer(burst).target
    assert answer(observed(0, size=1), state=fresh).target == 1


def test_a_pool_that_starts_large_enough_does_not_grow_for_what_may_come():
    fresh = msgspec.structs.replace(SETTLED, first_at=NOW - 5, grew_at=None)
    burst = observed(8, size=4, short=window(1.0, 8, peak=16))
    assert answer(burst, state=fresh).target == 4
    once_grown = msgspec.structs.replace(fresh, grew_at=NOW - 2)
    assert answer(burst, state=once_grown).target > 4


def test_a_steady_demand_of_eight_settles_and_stays():
    """The seed's rule grew 5 to 11 workers (of one slot) on a steady demand of 8, and stayed there."""
    config = SizingConfig(min_size=1, max_size=40)
    state, size, sizes, now = SizingState(), 5, [], 0.0
    for _ in range(1200):
        busy = min(8.0, size)
        seen = observed(
            busy, size=size, slots_per_worker=1, running=round(busy), queued=3 if size < 8 else 0,
            oldest_wait_s=0.5 if size < 8 else 0.0,
            short=msgspec.structs.replace(window(1.0, busy, peak=8), arrivals=16),
        )  # fmt: skip
        decision, state = decide(config, seen, state, now=now)
        size = decision.target
        sizes.append(size)
        now += 0.5
    assert len(set(sizes[-600:])) == 1
    assert 10 <= sizes[-1] <= 16  # Erlang C asks for 13 slots; 8 / 0.8 is 10


# --- the parts ---


def erlang_c(slots, load):
    top = load**slots / math.factorial(slots) * slots / (slots - load)
    return top / (sum(load**k / math.factorial(k) for k in range(slots)) + top)


@pytest.mark.parametrize("load", [0.5, 2.0, 8.0, 30.0])
@pytest.mark.parametrize("objective", [0.0, 0.1, 1.0])
def test_the_headroom_is_the_smallest_erlang_c_size(load, objective):
    late = [
        erlang_c(n, load) * math.exp(-(n - load) * objective / 0.5) if n > load else 1.0
        for n in range(1, 100)
    ]
    assert erlang_c_slots(load, 0.5, objective) == 1 + next(
        i for i, share in enumerate(late) if share <= 0.01
    )


def test_the_headroom_grows_with_the_square_root_of_the_load():
    extra = {load: erlang_c_slots(load, 1.0, 0.0) - load for load in (100, 400, 1600)}
    assert extra[400] / extra[100] == pytest.approx(2, rel=0.1)
    assert extra[1600] / extra[400] == pytest.approx(2, rel=0.1)


def test_no_load_needs_no_headroom():
    assert erlang_c_slots(0.0, 0.5, 0.1) == 0


def test_old_peaks_are_merged_the_largest_of_them_is_kept_and_in_the_end_forgotten():
    peaks: tuple[Peak, ...] = ()
    for tick in range(8000):
        peaks = remember(peaks, Peak(tick * 0.5, tick * 0.5, 99.0 if tick == 2500 else 1.0), tick * 0.5)
        if tick == 4000:
            assert max(p.slots for p in peaks) == 99.0
    assert len(peaks) < 120
    assert max(p.slots for p in peaks) == 1.0


def test_the_configuration_comes_from_the_pools():
    pool = SimpleNamespace(
        min_pool_size=2, max_pool_size=9, max_overflow=3, overflow_idle_s=7.0, target_utilization=0.6,
        max_wait_s=0.2, grow_cooldown_s=1.0, shrink_cooldown_s=8.0, optimization_interval_s=2.0,
        metrics_flush_interval_s=0.75, enable_optimizer=True,
    )  # fmt: skip
    config = SizingConfig.of(pool)
    assert (config.min_size, config.max_size, config.max_overflow, config.shrink_cooldown_s) == (2, 9, 3, 8.0)
    assert config.short_window_s == 2.0
    assert config.stale_after_s == 6.0
    pool.metrics_flush_interval_s = 2.5
    assert SizingConfig.of(pool).short_window_s == 5.0
    assert config.enabled


def test_a_decision_says_why_and_with_which_numbers():
    decision = answer(observed(12, size=4))
    assert decision.reason
    assert {"load", "demand", "need_headroom", "need_peak", "need_backlog", "plan_hold_s"} <= set(
        decision.numbers
    )
    assert msgspec.json.decode(msgspec.json.encode(decision), type=type(decision)) == decision


def test_the_state_survives_as_plain_data():
    _, state = decide(CONFIG, observed(12, size=4), SETTLED, now=NOW)
    assert msgspec.convert(msgspec.to_builtins(state), SizingState) == state


def test_the_state_of_a_version_before_is_readable_and_holds_the_size_at_first():
    fields = {"first_at": 0.0, "called_at": 999.5, "changed_at": 500.0, "grew_at": 500.0}
    before = rebuilt(SizingState, {**fields, "scores": (Score(1.0, 2.0),) * 17})
    decision, state = decide(CONFIG, observed(0, size=3), before, now=NOW)
    assert (decision.target, state.needed_at) == (3, (NOW,) * 3)
    assert len(state.scores) == len(POLICIES)


def test_a_reason_counts_one_worker_as_one():
    assert answer(observed(0, size=1)).reason.endswith("needs 1 worker")
