"""Sizing decisions: each mistake of the seed's optimizer, put right."""

from __future__ import annotations

import math
from types import SimpleNamespace

import msgspec
import pytest

from dspool.core.autoscale.demand import erlang_c_slots, remember
from dspool.core.autoscale.inputs import Peak, Score, SizingConfig, SizingInputs, SizingState, Window
from dspool.core.autoscale.policies import POLICIES, PRIOR_S, LoadSample, Policy, choose, judge
from dspool.core.autoscale.sizing import decide, kept, last_needed
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


def test_a_queue_is_answered_before_anything_has_ended_where_workers_start_at_once():
    # Nothing says how long an operation takes.
    seen = Window(span_s=60.0, arrivals=100, started=16, peak_demand=80)
    decision = answer(
        observed(16, size=2, short=seen, long=seen, queued=64, oldest_wait_s=3.0, start_delay_s=0.0)
    )
    assert decision.action == "grow"


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
    followed = tuple(Score(worker_s=1e4 * (policy != Policy(30.0, 0.5))) for policy in POLICIES)
    held = msgspec.structs.replace(SETTLED, peaks=(Peak(NOW - 26, NOW - 26, 40.0),), scores=followed)
    # 40 slots and half a worker. Each worker then stays for the shrink cooldown of 3 s: 30 s in all.
    assert answer(observed(2, size=9), state=held).target == 6
    assert answer(observed(2, size=9), state=held).reason == "recent peak needs 6 workers"
    faded = msgspec.structs.replace(held, peaks=(Peak(NOW - 28, NOW - 28, 40.0),))
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


def test_it_does_not_shrink_before_it_has_seen_a_long_window():
    fresh = msgspec.structs.replace(SETTLED, first_at=NOW - 50)
    assert "too little seen" in answer(observed(4, size=9), state=fresh).reason


# --- the policies for keeping room ---


def load_sample(demand, *, arrived=10.0, before=0.0, late=0.0, slots=0):
    return LoadSample(
        arrived=arrived, started=arrived, late=late, demand=demand, demand_before=before,
        slots_before=slots, elapsed_s=0.5,
    )  # fmt: skip


def judged(demand, *, scores=(), peaks=(), least=0.0, keep_s=3.0, **sample):
    seen = observed(2, size=2)
    totals = judge(scores, load_sample(demand, **sample), peaks, least, keep_s, CONFIG, seen, NOW)
    return dict(zip(POLICIES, totals, strict=True))


MEAGRE, ROOMY, LASTING = Policy(3.0, 0.5), Policy(3.0, 2.0), Policy(30.0, 0.5)


def test_a_policy_is_charged_for_what_comes_late_to_the_workers_it_would_have_had_warm():
    scores = judged(20.0)  # nothing known: what it spares, and the minimum of one
    assert scores[MEAGRE].late == pytest.approx(10 * (1 - 8 / 20))
    assert scores[ROOMY].late == pytest.approx(10 * (1 - 16 / 20))
    scores = judged(20.0, peaks=(Peak(NOW - 9, NOW - 9, 30.0),))
    assert scores[MEAGRE].late > 0.0
    assert scores[LASTING].late == 0.0


def test_a_policy_keeps_a_peak_no_shorter_than_the_pool_keeps_a_worker():
    peaks = (Peak(NOW - 9, NOW - 9, 30.0),)
    assert judged(20.0, peaks=peaks, keep_s=20.0)[MEAGRE] == judged(20.0, peaks=peaks)[LASTING]


def test_what_a_policy_would_have_asked_for_a_moment_ago_is_not_warm_yet():
    just_now = judged(40.0, peaks=(Peak(NOW - 0.5, NOW - 0.5, 40.0),))
    long_ago = judged(40.0, peaks=(Peak(NOW - 2.0, NOW - 2.0, 40.0),))
    assert just_now[MEAGRE].late > 0.0
    assert long_ago[MEAGRE].late == 0.0


def test_while_a_policy_is_short_already_all_arrivals_come_late_to_it():
    assert judged(20.0, before=20.0)[MEAGRE].late == 10.0 > judged(20.0)[MEAGRE].late


def test_what_came_late_in_truth_came_late_to_every_policy_with_no_more_slots():
    scores = judged(4.0, late=3.0, slots=8)
    assert scores[MEAGRE].late == 3.0  # one worker, as the pool had
    assert scores[ROOMY].late == 0.0  # two


def test_a_policy_pays_for_the_workers_that_it_orders_and_for_no_fewer_than_all_policies_need():
    known = {"scores": (Score(),) * len(POLICIES), "peaks": (Peak(NOW, NOW, 20.0),)}
    assert judged(4.0, **known)[MEAGRE].worker_s == pytest.approx(3 * 0.5)
    assert judged(4.0, **known, least=40.0)[MEAGRE].worker_s == pytest.approx(5 * 0.5)


def test_a_policy_must_save_something_before_it_is_followed():
    scores = judged(4.0)
    assert scores[ROOMY].worker_s - scores[MEAGRE].worker_s == pytest.approx(1.5 * PRIOR_S, rel=0.01)
    assert choose(list(scores.values()), 0.0, 0.0) == Policy(3.0, -0.5)


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


def scored(**of_policies):
    """`MEAGRE`, `ROOMY` with these (late, worker-seconds), all others far dearer."""
    given = {MEAGRE: of_policies["meagre"], ROOMY: of_policies["roomy"]}
    return [Score(*given.get(policy, (0.0, 1e9))) for policy in POLICIES]


def test_at_the_budget_a_late_operation_is_worth_ten_worker_seconds():
    # 17 of 1700 were late, just 1 %.
    assert choose(scored(meagre=(10.0, 1000.0), roomy=(0.0, 1101.0)), 17.0, 1700.0) is find(MEAGRE)
    assert choose(scored(meagre=(10.0, 1000.0), roomy=(0.0, 1099.0)), 17.0, 1700.0) is find(ROOMY)


def find(policy):
    return POLICIES[POLICIES.index(policy)]


def test_the_price_rises_with_the_share_that_came_late_in_truth():
    scores = scored(meagre=(10.0, 1000.0), roomy=(0.0, 1150.0))
    assert choose(scores, 0.0, 1700.0) is find(MEAGRE)
    assert choose(scores, 40.0, 1700.0) is find(ROOMY)


def test_the_first_late_operations_do_not_decide_everything():
    # One of two was late: as four of 302, for there is a prior of three late of 300.
    assert choose(scored(meagre=(1.0, 10.0), roomy=(0.0, 24.0)), 1.0, 2.0) is find(MEAGRE)
    assert choose(scored(meagre=(1.0, 10.0), roomy=(0.0, 23.0)), 1.0, 2.0) is find(ROOMY)


def test_only_a_pool_that_must_grow_soon_after_its_start_expects_the_burst_to_become_larger():
    frugal = msgspec.structs.replace(
        SETTLED, scores=tuple(Score(worker_s=1e4 * (policy != Policy(3.0, 0.0))) for policy in POLICIES)
    )
    fresh = msgspec.structs.replace(frugal, first_at=NOW - 5, grew_at=None)
    burst = observed(8, size=2, short=window(1.0, 8, peak=24))
    assert answer(burst, state=frugal).target == 3
    assert (
        answer(burst, state=fresh).target == 7
    )  # 20 slots; 24 at once could start within the wait objective
    assert answer(msgspec.structs.replace(burst, desired=4), state=fresh).target == 4


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
        if tick == 3600:
            assert max(p.slots for p in peaks) == 99.0
    assert len(peaks) < 120
    assert max(p.slots for p in peaks) == 1.0


def test_the_configuration_comes_from_the_pools():
    pool = SimpleNamespace(
        min_pool_size=2, max_pool_size=9, max_overflow=3, overflow_idle_s=7.0, target_utilization=0.6,
        max_wait_s=0.2, grow_cooldown_s=1.0, shrink_cooldown_s=8.0, optimization_interval_s=2.0,
        metrics_flush_interval_s=0.75,
    )  # fmt: skip
    config = SizingConfig.of(pool)
    assert (config.min_size, config.max_size, config.max_overflow, config.shrink_cooldown_s) == (2, 9, 3, 8.0)
    assert config.short_window_s == 2.0
    assert config.stale_after_s == 6.0
    pool.metrics_flush_interval_s = 2.5
    assert SizingConfig.of(pool).short_window_s == 5.0


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
    score = rebuilt(Score, {"late": 1.0, "worker_s": 2.0, "workers": 3})
    before = rebuilt(SizingState, {**fields, "scores": (score,) * 19})
    decision, state = decide(CONFIG, observed(0, size=3), before, now=NOW)
    assert (decision.target, state.needed_at) == (3, (NOW,) * 3)
    assert len(state.scores) == len(POLICIES)


def test_the_configuration_of_a_version_before_is_readable():
    fields = {name: getattr(CONFIG, name) for name in CONFIG.__struct_fields__}
    assert rebuilt(SizingConfig, {**fields, "enabled": False}) == CONFIG


def test_a_reason_counts_one_worker_as_one():
    assert answer(observed(0, size=1)).reason.endswith("needs 1 worker")
