"""The README's figures are those that a full report held."""

import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks import quote
from benchmarks.common import percentile
from benchmarks.findings import Findings, within

FACTS = {
    "command": "c",
    "commit": "c0ffee",
    "machine": "2 cores",
    "python": "3",
    "ray": "2",
    "dspy": "3",
    "date": "d",
}


def report(**changed):
    entry = {**FACTS, "quick": False, "ok": True, "figures": {}}
    return {"benchmarks": {name: entry | changed.get(name, {}) for name in quote.KEPT}}


def test_the_readme_says_what_the_kept_figures_say():
    text = quote.section(json.loads(quote.FIGURES.read_text()))
    assert quote.BEGIN + text + quote.END in quote.README.read_text()


def test_the_readme_quotes_no_speed_outside_of_what_is_written_from_the_report():
    before, rest = quote.README.read_text().split(quote.BEGIN)
    outside = before + rest.split(quote.END)[1]
    assert not re.findall(r"\d[\d.,]* (?:ms|microseconds|requests/s|operations/s|times)\b", outside)


def test_each_quoted_figure_lies_within_the_range_that_is_quoted_beside_it():
    """Read off the README, as its readers do: the third column and the two numbers of the fourth."""
    section = quote.README.read_text().split(quote.BEGIN)[1].split(quote.END)[0]
    rows = re.findall(
        r"^\| `(\w+)` \| [^|]* \| ([\d.,]+)[^|]* \| ([\d.,]+) to ([\d.,]+), \d+ \|$", section, re.M
    )
    assert len(rows) + section.count("| not kept, ") == 8
    for name, *numbers in rows:
        value, lowest, highest = (float(number.replace(",", "")) for number in numbers)
        assert lowest <= value <= highest, name


def test_a_figure_outside_of_its_range_is_not_quoted_nor_found():
    row = {"name": "recovery_time", "value": 50.6, "lowest": 32.2, "highest": 38.6}
    with pytest.raises(quote.NotQuotable, match="recovery_time lies outside of its own range"):
        quote.kept(report(targets={"figures": {"targets": [row]}}))
    with pytest.raises(ValueError, match=r"recovery_time is 50.6, its repetitions 32.2 to 38.6"):
        Findings().target("recovery_time", "< 500", [32.2, 38.6], "ms", bool, "kills", 20, value=50.6)


@given(st.lists(st.floats(0, 1e3), min_size=20, max_size=20))
def test_the_p99_of_all_kills_lies_among_those_of_their_groups(times):
    worst = [percentile(times[turn::5], 0.99) for turn in range(5)]
    assert within(percentile(times, 0.99), min(worst), max(worst))


def test_another_figure_is_another_text():
    figures = json.loads(quote.FIGURES.read_text())
    before = quote.section(figures)
    figures["throughput"]["figures"]["pool_ops_per_s"] += 1
    assert quote.section(figures) != before


def test_figures_are_kept_with_the_commit_they_are_of():
    kept = quote.kept(report())
    assert {name: entry["commit"] for name, entry in kept.items()} == dict.fromkeys(quote.KEPT, "c0ffee")


@pytest.mark.parametrize(
    ("changed", "said"), [({"quick": True}, "http was a short run"), ({"ok": False}, "http failed")]
)
def test_what_is_no_full_run_is_not_quoted(changed, said):
    with pytest.raises(quote.NotQuotable, match=said):
        quote.kept(report(http=changed))


def test_a_report_without_a_benchmark_is_not_quoted_and_nothing_is_written(tmp_path, capsys):
    file = tmp_path / "report.json"
    file.write_text('{"benchmarks": {}}')
    assert quote.main(file) == 1
    assert "nothing written" in capsys.readouterr().err
