"""A worker's id: made of its parts, and taken apart again, whatever its pool is called."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dspool.errors import UnknownWorker
from dspool.messages import WorkerId

POOLS = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}", fullmatch=True) | st.sampled_from(
    ["a-w1", "a-w1-ab", "a-w1-ab-w2-cd", "w0", "9-w", "-w0-a-"]
)
IDS = st.builds(
    WorkerId, POOLS, st.integers(0, 999_999_999), st.from_regex(r"[0-9a-f]{1,32}", fullmatch=True)
)


@given(IDS)
def test_an_id_is_read_as_it_was_made(worker):
    assert WorkerId.parse(str(worker)) == worker
    assert WorkerId.of_role(worker.pool, worker.role) == worker


def test_a_pool_may_be_called_like_a_worker():
    assert str(WorkerId("a-w1", 0, "00ff1e")) == "a-w1-w0-00ff1e"
    assert WorkerId.parse("a-w1-w0-00ff1e") == ("a-w1", 0, "00ff1e")
    assert WorkerId.parse("a-w1-ab-w12-cd") == ("a-w1-ab", 12, "cd")
    assert WorkerId.parse("a-w1-w0-00ff1e").role == "worker:0:00ff1e"


@pytest.mark.parametrize(
    "text",
    [
        "", "a", "a-w", "a-w0", "a-w0-", "-w0-a", "a-w-a", "a-w00-a", "a-w01-a", "a-w-1-a", "a-w+1-a", "a-w1_0-a",
        "a-w0-g", "a-w0-A", "a-w0-a:b", "a-w0-a-b", "a-w0-a\n", "a\n-w0-a", "a-w\u0663-a", "a-w0-\uff41", "a-W0-a",
        "a-w1000000000-a", f"a-w{'9' * 5000}-a",
    ],
)  # fmt: skip
def test_what_is_no_id_names_no_worker(text):
    with pytest.raises(UnknownWorker) as refused:
        WorkerId.parse(text)
    assert len(str(refused.value)) < 500
