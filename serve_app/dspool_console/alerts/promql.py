"""The part of PromQL that our alerts are written in, evaluated over samples kept here.

So an alert means the same to a Prometheus and to the dashboard of a service that has none. What is not understood is
refused when it is read; a test holds every alert readable. `rate` and `increase` do not extrapolate to the edges of
their window as Prometheus does: over 5 minutes of samples every 15 s that is up to 5 % less.
"""

from __future__ import annotations

import itertools
import math
import operator
import re
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Final, NamedTuple

Labels = frozenset[tuple[str, str]]
Vector = dict[Labels, float]
Sample = Mapping[str, Mapping[Labels, float]]
"""Metric name -> labels -> value, at one moment."""

_TOKEN: Final = re.compile(
    r"\s*(?:(?P<number>\d+(?:\.\d+)?(?:e-?\d+)?)(?![\w:])|(?P<name>[A-Za-z_:][\w:]*)|(?P<text>\"[^\"]*\")"
    r"|(?P<op>=~|!=|!~|==|>=|<=|[-+*/><(){}\[\],=]))"
)
_DURATION: Final = re.compile(r"(\d+)([smhd])")
_SECONDS: Final = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_COMPARE: Final[dict[str, Callable[[float, float], bool]]] = {
    ">": operator.gt, "<": operator.lt, ">=": operator.ge, "<=": operator.le, "==": operator.eq, "!=": operator.ne,
}  # fmt: skip
_ARITHMETIC: Final[dict[str, Callable[[float, float], float]]] = {
    "+": operator.add, "-": operator.sub, "*": operator.mul,
    "/": lambda a, b: a / b if b else (math.nan if a == 0 or math.isnan(a) else math.copysign(math.inf, a)),
}  # fmt: skip


class NotUnderstood(ValueError):
    """This text is beyond the part of PromQL that is evaluated here."""


class PromSeries:
    """The samples of the last `span_s` seconds."""

    def __init__(self, span_s: float) -> None:
        self._span_s = span_s
        self._samples: deque[tuple[float, Sample]] = deque()

    def add(self, at: float, sample: Sample) -> None:
        self._samples.append((at, sample))
        while self._samples[0][0] < at - self._span_s:
            self._samples.popleft()

    def newest(self) -> tuple[float, Sample] | None:
        return self._samples[-1] if self._samples else None

    def within(self, seconds: float) -> list[tuple[float, Sample]]:
        if not self._samples:
            return []
        oldest = self._samples[-1][0] - seconds
        return [one for one in self._samples if one[0] >= oldest]


class Expression(NamedTuple):
    text: str
    evaluate: Callable[[PromSeries], Vector | float]
    names: frozenset[str]
    """The metrics that it reads."""

    def vector(self, series: PromSeries) -> Vector:
        value = self.evaluate(series)
        return {frozenset(): value} if isinstance(value, float) else value


_Node = Callable[[PromSeries], Vector | float]


def parse(text: str, recorded: Mapping[str, str] | None = None) -> Expression:
    """`text` ready to be evaluated; names in `recorded` stand for their own expressions.

    Raises:
        NotUnderstood: it is beyond what is evaluated here.
    """
    reader = _Reader(text, recorded or {})
    node = reader.expression()
    reader.end()
    return Expression(text, node, frozenset(reader.names))


class _Reader:
    def __init__(self, text: str, recorded: Mapping[str, str]) -> None:
        self._tokens = list(_tokens(text))
        self._at = 0
        self._text = text
        self._recorded = recorded
        self.names: set[str] = set()

    # --- tokens ---

    def _peek(self) -> str:
        return self._tokens[self._at][1] if self._at < len(self._tokens) else ""

    def _next(self, expected: str = "") -> tuple[str, str]:
        if self._at >= len(self._tokens):
            raise NotUnderstood(f"{self._text!r} ends too early")
        token = self._tokens[self._at]
        if expected and token[1] != expected:
            raise NotUnderstood(f"{expected!r} expected at {token[1]!r} in {self._text!r}")
        self._at += 1
        return token

    def end(self) -> None:
        if self._at < len(self._tokens):
            raise NotUnderstood(f"{self._peek()!r} is too much in {self._text!r}")

    # --- grammar, loosest first ---

    def expression(self) -> _Node:
        node = self._comparison()
        while self._peek() == "and":
            self._next()
            node = _and(node, self._comparison())
        return node

    def _comparison(self) -> _Node:
        node = self._sum()
        while self._peek() in _COMPARE:
            sign = self._next()[1]
            node = _binary(node, self._sum(), compare=_COMPARE[sign])
        return node

    def _sum(self) -> _Node:
        node = self._product()
        while self._peek() in ("+", "-"):
            sign = self._next()[1]
            node = _binary(node, self._product(), apply=_ARITHMETIC[sign])
        return node

    def _product(self) -> _Node:
        node = self._primary()
        while self._peek() in ("*", "/"):
            sign = self._next()[1]
            node = _binary(node, self._primary(), apply=_ARITHMETIC[sign])
        return node

    def _primary(self) -> _Node:
        kind, text = self._next()
        if kind == "number":
            value = float(text)
            return lambda series: value
        if text == "(":
            node = self.expression()
            self._next(")")
            return node
        if text in ("max", "sum"):
            return self._aggregation(max if text == "max" else sum)
        if text in ("rate", "increase"):
            self._next("(")
            name, where = self._selector(self._next()[1])
            self._next("[")
            seconds = self._duration()
            self._next("]")
            self._next(")")
            return _increase(name, where, seconds, per_second=text == "rate")
        if text == "histogram_quantile":
            self._next("(")
            q = float(self._next()[1])
            self._next(",")
            inner = self.expression()
            self._next(")")
            return _quantile(q, inner)
        if kind == "name" and self._peek() != "(":
            if text in self._recorded:
                inside = parse(self._recorded[text], self._recorded)
                self.names |= inside.names
                return inside.evaluate
            return _instant(*self._selector(text))
        raise NotUnderstood(f"{text!r} is not evaluated here, in {self._text!r}")

    def _aggregation(self, gather: Callable[[Sequence[float]], float]) -> _Node:
        self._next("by")
        self._next("(")
        names = [self._next()[1]]
        while self._peek() == ",":
            self._next()
            names.append(self._next()[1])
        self._next(")")
        self._next("(")
        inner = self.expression()
        self._next(")")
        return _gathered(gather, frozenset(names), inner)

    def _selector(self, name: str) -> tuple[str, list[_Matcher]]:
        self.names.add(name)
        where: list[_Matcher] = []
        if self._peek() == "{":
            self._next()
            while self._peek() != "}":
                label, sign, value = (self._next()[1] for _ in range(3))
                where.append(_matcher(label, sign, value.strip('"')))
                if self._peek() == ",":
                    self._next()
            self._next("}")
        return name, where

    def _duration(self) -> float:
        # The tokenizer may have split "5m" in a number and a unit.
        text = self._next()[1]
        if self._peek() != "]":
            text += self._next()[1]
        found = _DURATION.fullmatch(text)
        if found is None:
            raise NotUnderstood(f"{text!r} is no duration, in {self._text!r}")
        return int(found[1]) * _SECONDS[found[2]]


def _tokens(text: str) -> Iterator[tuple[str, str]]:
    # Durations stand only in brackets: "5m" is a number and a unit to the rest of the grammar.
    text = re.sub(r"\[(\d+)([smhd])\]", r"[ \1 \2 ]", text)
    at = 0
    while at < len(text):
        if not text[at:].strip():
            return
        found = _TOKEN.match(text, at)
        if found is None:
            raise NotUnderstood(f"{text[at : at + 20]!r} cannot be read, in {text!r}")
        yield str(found.lastgroup), found[str(found.lastgroup)]
        at = found.end()


# --- what the grammar means ---

_Matcher = tuple[str, Callable[[str], bool]]


def _matcher(label: str, sign: str, value: str) -> _Matcher:
    if sign in ("=~", "!~"):
        pattern = re.compile(value)
        return label, (lambda text: (pattern.fullmatch(text) is not None) == (sign == "=~"))
    if sign in ("=", "!="):
        return label, (lambda text: (text == value) == (sign == "="))
    raise NotUnderstood(f"{sign!r} is no way to choose by a label")


def _chosen(sample: Sample, name: str, where: list[_Matcher]) -> Vector:
    found = sample.get(name, {})
    return {
        labels: value
        for labels, value in found.items()
        if all(fits(dict(labels).get(label, "")) for label, fits in where)
    }


def _instant(name: str, where: list[_Matcher]) -> _Node:
    def evaluate(series: PromSeries) -> Vector:
        newest = series.newest()
        return {} if newest is None else _chosen(newest[1], name, where)

    return evaluate


def _increase(name: str, where: list[_Matcher], seconds: float, *, per_second: bool) -> _Node:
    def evaluate(series: PromSeries) -> Vector:
        seen: dict[Labels, list[tuple[float, float]]] = {}
        for at, sample in series.within(seconds):
            for labels, value in _chosen(sample, name, where).items():
                seen.setdefault(labels, []).append((at, value))
        found = {}
        for labels, values in seen.items():
            if len(values) < 2:
                continue
            grown = sum(
                after - before if after >= before else after  # a counter that fell began anew
                for (_, before), (_, after) in itertools.pairwise(values)
            )
            found[labels] = grown / (values[-1][0] - values[0][0]) if per_second else grown
        return found

    return evaluate


def _gathered(gather: Callable[[Sequence[float]], float], names: frozenset[str], inner: _Node) -> _Node:
    def evaluate(series: PromSeries) -> Vector:
        groups: dict[Labels, list[float]] = {}
        for labels, value in _vector(inner(series)).items():
            groups.setdefault(frozenset(one for one in labels if one[0] in names), []).append(value)
        return {labels: gather(values) for labels, values in groups.items()}

    return evaluate


def _quantile(q: float, inner: _Node) -> _Node:
    def evaluate(series: PromSeries) -> Vector:
        groups: dict[Labels, list[tuple[float, float]]] = {}
        for labels, value in _vector(inner(series)).items():
            bound = float(dict(labels)["le"])
            groups.setdefault(frozenset(one for one in labels if one[0] != "le"), []).append((bound, value))
        return {labels: _within_buckets(q, sorted(buckets)) for labels, buckets in groups.items()}

    return evaluate


def _within_buckets(q: float, buckets: list[tuple[float, float]]) -> float:
    total = buckets[-1][1]
    if total <= 0 or len(buckets) < 2:
        return math.nan
    wanted, below, before = q * total, 0.0, 0.0
    for bound, number in buckets:
        if number >= wanted:
            if math.isinf(bound):
                return below
            share = (wanted - before) / (number - before) if number > before else 1.0
            return below + (bound - below) * share
        below, before = bound, number
    return below


def _binary(
    left: _Node,
    right: _Node,
    *,
    compare: Callable[[float, float], bool] | None = None,
    apply: Callable[[float, float], float] | None = None,
) -> _Node:
    def evaluate(series: PromSeries) -> Vector | float:
        a, b = left(series), right(series)
        if isinstance(a, float) and isinstance(b, float):
            return float(compare(a, b)) if compare is not None else _applied(apply, a, b)
        pairs = _pairs(a, b)
        if compare is not None:
            return {labels: x for labels, (x, y) in pairs.items() if compare(x, y)}
        return {labels: _applied(apply, x, y) for labels, (x, y) in pairs.items()}

    return evaluate


def _applied(apply: Callable[[float, float], float] | None, a: float, b: float) -> float:
    assert apply is not None
    return apply(a, b)


def _pairs(a: Vector | float, b: Vector | float) -> dict[Labels, tuple[float, float]]:
    if isinstance(a, float):
        return {labels: (a, value) for labels, value in _vector(b).items()}
    if isinstance(b, float):
        return {labels: (value, b) for labels, value in a.items()}
    return {labels: (value, b[labels]) for labels, value in a.items() if labels in b}


def _and(left: _Node, right: _Node) -> _Node:
    def evaluate(series: PromSeries) -> Vector:
        b = _vector(right(series))
        return {labels: value for labels, value in _vector(left(series)).items() if labels in b}

    return evaluate


def _vector(value: Vector | float) -> Vector:
    return {frozenset(): value} if isinstance(value, float) else value


__all__ = ["Expression", "Labels", "NotUnderstood", "PromSeries", "Sample", "Vector", "parse"]
