"""When operations came and how long they took: a trace of arrivals, read from a CSV or JSONL file or from stdin."""

from __future__ import annotations

import csv
import io
import itertools
import json
import math
import random
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, NamedTuple

from dspool.errors import InvalidRequest

STDIN: Final = Path("-")
_TIME: Final = "timestamp"
_TOKENS: Final = (
    "generatedtokens",
    "generated_tokens",
    "outputtokens",
    "output_tokens",
    "responsetokens",
    "completiontokens",
)


@dataclass(frozen=True)
class Workload:
    """Operations: when they come (seconds from 0, ascending) and how long each holds a slot (seconds)."""

    name: str
    arrivals: list[float]
    services: list[float]
    note: str = ""

    @property
    def span_s(self) -> float:
        return self.arrivals[-1] if self.arrivals else 0.0


class _Row(NamedTuple):
    line: int
    time: Any
    tokens: float | None


def read_trace(
    file: Path, *, compress: float = 1.0, service_mean_s: float = 0.5, seed: int = 1, name: str | None = None
) -> Workload:
    """The operations of a CSV or JSONL file (`-` is stdin), with time divided by `compress`.

    The column `timestamp` (any case) may hold ISO times (any number of fraction digits), seconds or
    milliseconds; `note` says which was taken. Where there is a column of generated tokens, service times
    are proportional to a constant share (time to first token: a fifth of the mean) plus the tokens, with
    mean `service_mean_s`; otherwise they are drawn from an exponential distribution of that mean.

    Raises:
        InvalidRequest: the file cannot be read; it has fewer than two rows or no column `timestamp`; a value is no
            time. Names file, line and value.
    """
    if not compress > 0:
        raise InvalidRequest(f"compress must be more than 0, got {compress}")
    rows = list(_rows(file))
    if len(rows) < 2:
        raise InvalidRequest(f"{file}: need at least 2 rows, found {len(rows)}")
    times, unit = _times(file, rows)
    order = sorted(range(len(times)), key=times.__getitem__)
    first = times[order[0]]
    arrivals = [(times[i] - first) / compress for i in order]
    if arrivals[-1] <= 0:
        raise InvalidRequest(f"{file}: all timestamps are equal")
    tokens = [row.tokens for row in rows if row.tokens is not None]
    if len(tokens) == len(rows):
        mean = sum(tokens) / len(tokens)
        services = [
            service_mean_s * (0.2 + 0.8 * tokens[i] / mean) if mean else service_mean_s for i in order
        ]
        scaled = "service times scaled by generated tokens"
    else:
        draw = random.Random(seed)
        services = [draw.expovariate(1 / service_mean_s) for _ in order]
        scaled = "service times exponential"
    note = f"timestamps read as {unit}, compressed x{compress:g}, {scaled}, mean {service_mean_s:g} s"
    return Workload(name or ("stdin" if file == STDIN else file.stem), arrivals, services, note)


def _rows(file: Path) -> Iterator[_Row]:
    text = _text(file)
    is_json = text.lstrip()[:1] in ("{", "[")
    lines = io.StringIO(text, newline="")
    for line, record in _json_records(file, lines) if is_json else _csv_records(file, lines):
        low = {str(key).strip().lower(): value for key, value in record.items() if key is not None}
        if _TIME not in low:
            raise InvalidRequest(f"{file}: line {line} has no column 'timestamp', only {sorted(low)[:8]}")
        tokens = next((low[key] for key in _TOKENS if low.get(key) not in (None, "")), None)
        try:
            count = None if tokens is None else float(tokens)
        except (TypeError, ValueError, OverflowError):
            count = math.nan
        if count is not None and not (math.isfinite(count) and count >= 0):
            raise InvalidRequest(f"{file}: line {line}: {tokens!r} is not a number of tokens")
        yield _Row(line, low[_TIME], count)


def _text(file: Path) -> str:
    try:
        return (sys.stdin.buffer.read() if file == STDIN else file.read_bytes()).decode("utf-8-sig")
    except OSError as failed:
        raise InvalidRequest(f"cannot read {file}: {failed.strerror}") from None
    except UnicodeDecodeError:
        raise InvalidRequest(f"{file} is not UTF-8") from None


def _csv_records(file: Path, lines: Iterable[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    reader = csv.DictReader(lines)
    try:
        columns = [column.strip().lower() for column in reader.fieldnames or ()]
        if columns and _TIME not in columns:
            raise InvalidRequest(
                f"{file}: line {reader.line_num} has no column 'timestamp', only {sorted(columns)[:8]}"
            )
        for record in reader:
            yield reader.line_num, record
    except csv.Error as odd:
        raise InvalidRequest(f"{file}: line {reader.line_num + 1} is not CSV: {odd}") from None


def _json_records(file: Path, lines: Iterable[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            raise InvalidRequest(f"{file}: line {number} is not JSON") from None
        if not isinstance(record, dict):
            raise InvalidRequest(f"{file}: line {number} is not a JSON object")
        yield number, record


def _times(file: Path, rows: list[_Row]) -> tuple[list[float], str]:
    """All timestamps in seconds, and what they were read as: "ISO time", "seconds" or "milliseconds".

    The first row says whether they are numbers.
    """
    if _number(rows[0].time) is None:
        return [_iso(file, row) for row in rows], "ISO time"
    numbers = []
    for row in rows:
        number = _number(row.time)
        if number is None or not math.isfinite(number):
            raise InvalidRequest(
                f"{file}: line {row.line}: {row.time!r} is not a time in seconds or milliseconds"
            )
        numbers.append(number)
    # Since the epoch, seconds have 10 digits and milliseconds 13. Relative times: whole numbers whose
    # span would be more than 30 days as seconds can only be milliseconds.
    span = max(numbers) - min(numbers)
    if max(numbers) > 1e11 or (all(n == int(n) for n in numbers) and span > 30 * 86400):
        return [n / 1000.0 for n in numbers], "milliseconds"
    return numbers, "seconds"


def _number(value: Any) -> float | None:
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        return None


def _iso(file: Path, row: _Row) -> float:
    """ISO time with any number of fraction digits (Python 3.11 takes 7 digits by cutting them; here none is
    lost)."""
    whole, dot, rest = str(row.time).strip().partition(".")
    digits = "".join(itertools.takewhile("0123456789".__contains__, rest))
    zone = rest[len(digits) :]
    try:
        moment = datetime.fromisoformat((whole + zone).strip())
    except ValueError:
        raise InvalidRequest(
            f"{file}: line {row.line}: {row.time!r} is neither ISO time, seconds nor milliseconds"
        ) from None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return moment.timestamp() + (float(f"0.{digits}") if dot and digits else 0.0)


__all__ = ["STDIN", "Workload", "read_trace"]
