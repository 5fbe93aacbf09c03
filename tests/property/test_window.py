from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dspool.core.metrics.window import BusyIntegral, Columns, HistoryWindow, RecentCells


class Sum:
    """A cell that adds numbers up and keeps the largest."""

    def __init__(self, value: float = 0.0) -> None:
        self.value = value
        self.largest = value

    def add(self, other: Sum) -> None:
        self.value += other.value
        self.largest = max(self.largest, other.largest)


def history(**settings) -> HistoryWindow[Sum]:
    return HistoryWindow(Sum, lambda cell: (cell.value, cell.largest), width=2, **settings)


steps = st.lists(st.floats(0.01, 3.0), min_size=1, max_size=200)


@given(st.lists(st.tuples(st.floats(0.001, 5.0), st.booleans()), max_size=100))
def test_the_busy_integral_is_the_sum_of_running_times_time(changes):
    now, running, true, peak = 10.0, 0, 0.0, 0
    busy = BusyIntegral(now)
    for wait, starts in changes:
        now += wait
        true += running * wait
        by = 1 if starts or not running else -1
        running += by
        peak = max(peak, running)
        busy.change(by, now)
    assert busy.total(now) == pytest.approx(true)
    assert busy.total(now + 2.0) == pytest.approx(true + 2.0 * running)
    assert busy.take_peak() == peak
    assert busy.take_peak() == running


def test_a_clock_that_goes_back_takes_no_busy_time_away():
    busy = BusyIntegral(10.0)
    busy.change(1, 10.0)
    busy.change(1, 5.0)
    assert busy.total(11.0) == 2.0


@given(steps, st.floats(0.5, 300.0))
def test_a_recent_window_counts_exactly_the_cells_whose_middle_lies_inside(lengths, duration):
    recent: RecentCells[Sum] = RecentCells(Sum, fine_span_s=1000.0)
    now, cells = 50.0, []
    for number, length in enumerate(lengths):
        recent.add(now, now + length, Sum(number))
        cells.append((now, now + length, number))
        now += length
    total, span = recent.over(duration, now=now)
    inside = [cell for cell in cells if (cell[0] + cell[1]) / 2 >= now - duration]
    assert total.value == sum(cell[2] for cell in inside)
    assert span == pytest.approx(sum(cell[1] - cell[0] for cell in inside))
    assert span <= duration + lengths[0] / 2 + max(lengths)


@given(st.lists(st.floats(0.5, 1.5), min_size=200, max_size=400))
def test_a_long_window_agrees_with_a_short_one_about_what_is_in_both(lengths):
    recent: RecentCells[Sum] = RecentCells(Sum, fine_span_s=20.0, coarse_interval_s=10.0, coarse_span_s=100.0)
    now = 0.0
    for length in lengths:
        recent.add(now, now + length, Sum(length))
        now += length
    total, span = recent.over(60.0, now=now)
    # The value of each cell is its length: counts and seconds must belong together.
    assert total.value == pytest.approx(span)
    assert 45.0 <= span <= 75.0
    assert len(recent._fine) < 60
    assert len(recent._coarse) < 25


def test_a_window_leaves_out_what_was_before_the_last_resize():
    recent: RecentCells[Sum] = RecentCells(Sum, fine_span_s=60.0)
    for second in range(10):
        recent.add(second, second + 1, Sum(1))
    total, span = recent.over(8.0, now=10.0, since=7.0)
    assert (total.value, span) == (3, 3.0)
    assert recent.over(8.0, now=100.0)[1] == 0.0


@given(st.integers(1, 20), st.integers(0, 60), st.floats(-5, 65))
def test_columns_keep_the_newest_rows_in_order(capacity, number, oldest):
    columns = Columns(1, capacity)
    for row in range(number):
        columns.append(float(row), 1.0, (row,))
    kept = list(range(number))[-capacity:]
    assert [end for end, _, _ in columns.since(oldest)] == [row for row in kept if row > oldest]
    assert [values for _, _, values in columns.since(-1)] == [(row,) for row in kept]


@given(st.integers(1, 20), st.integers(0, 60))
def test_dumped_columns_come_back_on_another_clock(capacity, number):
    columns, again = Columns(2, capacity), Columns(2, capacity)
    for row in range(number):
        columns.append(100.0 + row, 1.0, (row, -row))
    again.load(columns.dump(200.0), 1000.0)
    assert again.since(-1) == [(end + 800.0, length, values) for end, length, values in columns.since(-1)]


@given(steps)
def test_history_loses_nothing_and_stays_in_order(lengths):
    kept = history()
    now = 5.0
    for length in lengths:
        kept.add(now, now + length, Sum(1))
        now += length
    for duration in (3600.0, 86400.0):
        _, rows = kept.points(duration, now=now)
        assert sum(values[0] for _, _, values in rows) == len(lengths)
        assert sum(length for _, length, _ in rows) == pytest.approx(sum(lengths))
        ends = [end for end, _, _ in rows]
        assert ends == sorted(ends)
        assert ends[-1] == now


@given(st.lists(st.floats(0.9, 1.1), min_size=10, max_size=50))
def test_a_jittery_tick_makes_one_row_each(lengths):
    kept, now = history(), 0.0
    for length in lengths:
        kept.add(now, now + length, Sum(1))
        now += length
    assert [values[0] for _, _, values in kept.points(3600, now=now)[1]] == [1] * len(lengths)


def test_an_hour_is_fine_a_day_is_coarse_and_coarse_rows_come_from_merged_cells():
    kept = history()
    for second in range(7200):
        kept.add(second, second + 1, Sum(second))
    interval, fine = kept.points(3600, now=7200)
    assert (interval, len(fine)) == (1.0, 3600)
    interval, coarse = kept.points(86400, now=7200)
    assert (interval, len(coarse)) == (10.0, 720)
    assert coarse[0] == (10.0, 10.0, (45.0, 9.0))


def test_a_week_is_in_rows_of_minutes_and_a_day_is_where_that_is_enough():
    kept = history()
    for second in range(7200):
        kept.add(second, second + 1, Sum(1))
    interval, (ends, _, sums, _) = kept.table(604_800, after=0)
    assert (interval, len(ends), set(sums)) == (300.0, 24, {300.0})
    assert kept.table(86_400, after=0)[0] == 10.0
    assert kept.table(86_400, after=0, resolution_s=60.0)[0] == 300.0
    assert kept.table(86_400, after=0, resolution_s=9999.0)[0] == 300.0


def test_what_an_earlier_version_dumped_is_taken_over():
    before, after = history(), history()
    for second in range(600):
        before.add(second, second + 1, Sum(1))
    after.load(before.dump(0.0)[:2], 0.0)
    assert len(after.points(3600, now=600)[1]) == 600
    assert after.points(604_800, now=600)[1] == []


def test_memory_is_bounded_over_many_days():
    kept = history(fine_span_s=60.0, coarse_span_s=600.0, long_interval_s=100.0, long_span_s=1000.0)
    for second in range(5000):
        kept.add(second, second + 1, Sum(1))
    assert len(kept.points(60, now=5000)[1]) == 60
    assert len(kept.points(600, now=5000)[1]) == 60
    assert len(kept.points(10**9, now=5000)[1]) == 10


def test_a_time_without_measurements_is_a_gap():
    kept = history()
    for start in (0, 1, 2, 100, 101):
        kept.add(start, start + 1, Sum(1))
    assert [(end - length, end) for end, length, _ in kept.points(3600, now=102)[1]][2:4] == [
        (2, 3),
        (100, 101),
    ]
    assert [length for _, length, _ in kept.points(86400, now=102)[1]] == [3, 2]


@pytest.mark.parametrize("duration", [0, -1, float("nan")])
def test_a_duration_that_is_none_is_refused(duration):
    with pytest.raises(ValueError, match="positive"):
        history().points(duration, now=1.0)


def test_a_history_without_rows_answers_none():
    assert history().points(60, now=1.0) == (1.0, [])
