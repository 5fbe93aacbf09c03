"""A search of the kept operations finds what `OperationQuery.fits` says, in order, page by page."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec.structs import asdict, replace

from dspool.core.metrics.operation_records import EndedOperation, OperationQuery
from dspool.core.metrics.tally import OUTCOMES
from dspool.telemetry import operation_store
from dspool.telemetry.operation_store import OperationStore

names = st.sampled_from(["qa", "sum", "straße"])
times = st.integers(0, 40).map(lambda tenth: 1_700_000_000.0 + tenth / 10)
durations = st.integers(0, 30).map(lambda n: n / 1000)
operations = st.builds(
    EndedOperation,
    id=st.integers(0, 60).map(lambda n: f"c0ffee-{n}"),
    ended_at=times,
    duration_s=durations,
    wait_s=st.just(0.0),
    run_s=st.just(0.0),
    command=st.just("execute_program"),
    program=st.none() | names,
    version=st.integers(0, 2),
    outcome=st.sampled_from(OUTCOMES),
    code=st.none() | st.sampled_from(["program_error", "model_error"]),
    exception=st.none() | st.sampled_from(["ValueError", "model_error"]),
    worker=st.none() | st.sampled_from(["w0", "w1"]),
    session=st.none() | st.sampled_from(["a", "b"]),
    principal=st.none() | st.sampled_from(["a", "b"]),
)
queries = st.builds(
    OperationQuery,
    id=st.none() | st.just("c0ffee-1"),
    program=st.none() | names | st.just("execute_program"),
    version=st.none() | st.integers(0, 2),
    outcome=st.none() | st.sampled_from([*OUTCOMES, "failed"]),
    error=st.none() | st.sampled_from(["program_error", "ValueError", "model_error"]),
    session=st.none() | st.sampled_from(["a", "b"]),
    principal=st.none() | st.sampled_from(["a", "b"]),
    worker=st.none() | st.sampled_from(["w0", "w1"]),
    since=st.none() | times,
    until=st.none() | times,
    at_least_s=st.none() | durations,
    at_most_s=st.none() | durations,
    text=st.none() | st.sampled_from(["fee-1", "2", "%", "'"]),
    sort=st.sampled_from(["time", "duration"]),
    ascending=st.booleans(),
    limit=st.integers(1, 5),
)
# Mostly of one or two filters: nothing fits all of them.
few = st.tuples(queries, st.sets(st.sampled_from(sorted(asdict(OperationQuery()))), min_size=10)).map(
    lambda both: replace(
        both[0], **{name: None for name in both[1] if name not in ("sort", "ascending", "limit")}
    )
)


@pytest.fixture(params=[6, 20_000])
def sample(request, monkeypatch):
    """Operations that a search by duration looks at first: fewer than there are, or all."""
    monkeypatch.setattr(operation_store, "_SAMPLE", request.param)


@pytest.mark.usefixtures("sample")
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(operations, max_size=40), st.lists(few, min_size=1, max_size=5))
def test_a_search_finds_all_that_fits_and_nothing_else_page_by_page_in_order(recorded, asked):
    with tempfile.TemporaryDirectory() as directory:
        store = OperationStore(Path(directory) / "o.db", max_rows=1000)
        # As a client does that does not know whether its batch arrived.
        store.write(recorded[:20], now=1_700_000_010.0)
        store.write(recorded, now=1_700_000_010.0)
        everything, rest = store.find(OperationQuery(limit=1000))
        assert rest is None
        assert store.kept == len(everything) == len({(one.id, one.ended_at) for one in recorded})
        for query in asked:
            found, cursor = store.find(query.checked())
            for _ in range(50):
                if cursor is None:
                    break
                more, cursor = store.find(replace(query, cursor=cursor).checked())
                found += more
            assert {key(one) for one in found} == {key(one) for one in everything if query.fits(one)}
            assert len(found) == len({key(one) for one in found})
            order = [one.ended_at if query.sort == "time" else one.duration_s for one in found]
            assert order == sorted(order, reverse=not query.ascending)
        store.close()


def key(one: EndedOperation) -> tuple[str, float]:
    return one.id, one.ended_at
