"""Conditions over figures, said once: Prometheus reads them as PromQL, the built-in monitor as they
stand.

An expression has `labels`, and a value for each combination of theirs that there is. Figures are
always summed up (or the highest, the lowest taken) over all other labels, those of the process that
told them too, so that the two readings have the same labels.

>>> lag = Last("headrace_group_lag_records", by=("partition",), where={"group": "joiner"})
>>> (lag > 0).promql()
'sum by (partition) (headrace_group_lag_records{group="joiner"}) > 0'
"""

from __future__ import annotations

import math
import operator
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

from infra.monitor.history import History, Selection

Key = tuple[str, ...]  # values of an expression's labels, in their order
Vector = dict[Key, float]
Summary = Literal["sum", "max", "min"]
LEAST_S = 5.0  # of a window that is scaled down: a scrape a second must find some points in it

_SUMMARIES: Mapping[Summary, Callable[[Iterable[float]], float]] = {
    "sum": sum,
    "max": max,
    "min": min,
}
_COMPARISONS: Mapping[str, Callable[[float, float], bool]] = {
    ">": operator.gt,
    "<": operator.lt,
    "==": operator.eq,
}
_ARITHMETIC: Mapping[str, Callable[[float, float], float]] = {
    "-": operator.sub,
    "/": operator.truediv,
}


def scaled(seconds: float, scale: float) -> float:
    """A window or a wait of so many seconds, `scale` times as long; never uselessly short."""
    return seconds if scale == 1.0 else max(min(seconds, LEAST_S), seconds * scale)


class Expression(ABC):
    """Values by labels. `scale` makes every window in it shorter (tests) or longer."""

    labels: Key

    @abstractmethod
    def promql(self, scale: float = 1.0) -> str:
        """The same for Prometheus."""

    @abstractmethod
    def value(self, history: History, scale: float = 1.0) -> Vector:
        """What it is now; a combination of labels of which nothing is known is not there."""

    @abstractmethod
    def selections(self) -> Iterator[Selection]:
        """The figures that it needs."""

    def __gt__(self, bound: float | Expression) -> Expression:
        return Compared(self, ">", bound)

    def __lt__(self, bound: float | Expression) -> Expression:
        return Compared(self, "<", bound)

    def equals(self, bound: float) -> Expression:
        """Only where it is that."""
        return Compared(self, "==", bound)

    def __sub__(self, other: Expression) -> Expression:
        return Calculated(self, "-", other)

    def __truediv__(self, other: Expression) -> Expression:
        return Calculated(self, "/", other)

    def __and__(self, other: Expression) -> Expression:
        """Only where the other has a value as well."""
        return Matched(self, "and", other)

    def unless(self, other: Expression) -> Expression:
        """Only where the other has none."""
        return Matched(self, "unless", other)

    def __or__(self, other: Expression) -> Expression:
        """And where it has no value, that of the other."""
        return Either(self, other)


# -- figures -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Figures(Expression):
    """Figures of one name. In `where` a value may be a regular expression: it begins with `~`."""

    name: str
    by: Key = ()
    where: Mapping[str, str] = field(default_factory=dict)

    @property
    def labels(self) -> Key:  # type: ignore[override]
        return self.by

    @cached_property
    def _selection(self) -> Selection:
        return Selection(self.name, tuple(sorted(self.where.items())))

    def selections(self) -> Iterator[Selection]:
        yield self._selection

    def _matchers(self, name: str | None = None) -> str:
        told = (
            f'{label}=~"{value[1:]}"' if value.startswith("~") else f'{label}="{value}"'
            for label, value in sorted(self.where.items())
        )
        inside = ", ".join(told)
        return (name or self.name) + (f"{{{inside}}}" if inside else "")


@dataclass(frozen=True)
class Last(_Figures):
    """What was told last."""

    summary: Summary = "sum"

    def promql(self, scale: float = 1.0) -> str:  # noqa: ARG002 - it has no window
        return _summed(self.summary, self.by, self._matchers())

    def value(self, history: History, scale: float = 1.0) -> Vector:  # noqa: ARG002
        return _summarised(history.last(self._selection, self.by), self.summary)


@dataclass(frozen=True)
class _OverTime(_Figures):
    over_s: float = 60.0

    def _range(self, scale: float, name: str | None = None) -> str:
        return f"{self._matchers(name)}[{duration(scaled(self.over_s, scale))}]"


@dataclass(frozen=True)
class Rate(_OverTime):
    """By how much a counter grew a second; a process that begins anew takes nothing back."""

    def promql(self, scale: float = 1.0) -> str:
        return _summed("sum", self.by, f"rate({self._range(scale)})")

    def value(self, history: History, scale: float = 1.0) -> Vector:
        over_s = scaled(self.over_s, scale)
        elapsed_s = history.elapsed(over_s)
        if not elapsed_s:
            return {}
        grown = _summarised(history.increase(self._selection, self.by, over_s), "sum")
        return {key: value / elapsed_s for key, value in grown.items()}


@dataclass(frozen=True)
class Increase(_OverTime):
    """By how much a counter grew."""

    def promql(self, scale: float = 1.0) -> str:
        return _summed("sum", self.by, f"increase({self._range(scale)})")

    def value(self, history: History, scale: float = 1.0) -> Vector:
        over_s = scaled(self.over_s, scale)
        if not history.elapsed(over_s):
            return {}
        return _summarised(history.increase(self._selection, self.by, over_s), "sum")


@dataclass(frozen=True)
class Highest(_OverTime):
    """The highest value of the time."""

    def promql(self, scale: float = 1.0) -> str:
        return _summed("max", self.by, f"max_over_time({self._range(scale)})")

    def value(self, history: History, scale: float = 1.0) -> Vector:
        spans = history.span(self._selection, self.by, scaled(self.over_s, scale))
        return _summarised(((key, high) for key, _, high in spans), "max")


@dataclass(frozen=True)
class Moved(_OverTime):
    """The range between the lowest and the highest value of the time: 0 where nothing changes."""

    summary: Summary = "max"

    def promql(self, scale: float = 1.0) -> str:
        inside = self._range(scale)
        return _summed(self.summary, self.by, f"max_over_time({inside}) - min_over_time({inside})")

    def value(self, history: History, scale: float = 1.0) -> Vector:
        spans = history.span(self._selection, self.by, scaled(self.over_s, scale))
        return _summarised(((key, high - low) for key, low, high in spans), self.summary)


@dataclass(frozen=True)
class Quantile(_OverTime):
    """A quantile of what a histogram observed in the time; nothing if that is nothing.

    Within a bucket values are taken to be spread evenly, as Prometheus does.
    """

    q: float = 0.5

    def promql(self, scale: float = 1.0) -> str:
        buckets = self._range(scale, f"{self.name}_bucket")
        summed = _summed("sum", (*self.by, "le"), f"rate({buckets})")
        return f"histogram_quantile({self.q:g}, {summed})"

    def selections(self) -> Iterator[Selection]:
        yield self._buckets

    @cached_property
    def _buckets(self) -> Selection:
        return Selection(f"{self.name}_bucket", tuple(sorted(self.where.items())))

    def value(self, history: History, scale: float = 1.0) -> Vector:
        grown = history.increase(self._buckets, (*self.by, "le"), scaled(self.over_s, scale))
        by_bound: dict[Key, dict[float, float]] = defaultdict(lambda: defaultdict(float))
        for (*key, bound), count in grown:
            by_bound[tuple(key)][float(bound)] += count
        found = {key: quantile(self.q, counts) for key, counts in by_bound.items()}
        return {key: value for key, value in found.items() if not math.isnan(value)}


@dataclass(frozen=True)
class Age(Last):
    """Seconds since the time that a figure tells; of several figures, the youngest.

    It is never negative: who is asked may answer a little later than the time that is noted of it.
    """

    summary: Summary = "max"

    def promql(self, scale: float = 1.0) -> str:
        return f"time() - {super().promql(scale)}"

    def value(self, history: History, scale: float = 1.0) -> Vector:
        now = history.now
        return {key: max(now - at, 0.0) for key, at in super().value(history, scale).items()}


def quantile(q: float, counts: Mapping[float, float]) -> float:
    """The quantile of a histogram: `counts` by upper bound, each with all that is below it.

    NaN if there is nothing in it; beyond the last bound, that bound.

    >>> quantile(0.5, {1.0: 10.0, 2.0: 20.0, math.inf: 20.0})
    1.0
    """
    bounds = sorted(counts)
    total = counts[bounds[-1]] if bounds else 0.0
    if total <= 0:
        return math.nan
    below, lower = 0.0, 0.0
    for bound in bounds:
        if counts[bound] >= q * total:
            if math.isinf(bound):
                return lower
            inside = counts[bound] - below
            return lower + (bound - lower) * ((q * total - below) / inside if inside else 1.0)
        below, lower = counts[bound], bound
    return lower


# -- what is made of them ----------------------------------------------------------------------


@dataclass(frozen=True)
class Compared(Expression):
    """The left values that compare so with a number, or with right values of the same labels."""

    left: Expression
    sign: str
    bound: float | Expression

    @property
    def labels(self) -> Key:  # type: ignore[override]
        return self.left.labels

    def promql(self, scale: float = 1.0) -> str:
        if isinstance(self.bound, Expression):
            return f"{_inside(self.left, scale)} {self.sign} {_inside(self.bound, scale)}"
        return f"{_inside(self.left, scale)} {self.sign} {self.bound:g}"

    def value(self, history: History, scale: float = 1.0) -> Vector:
        holds, left = _COMPARISONS[self.sign], self.left.value(history, scale)
        if isinstance(self.bound, Expression):
            right = self.bound.value(history, scale)
            return {k: v for k, v in left.items() if k in right and holds(v, right[k])}
        bound = self.bound
        return {key: value for key, value in left.items() if holds(value, bound)}

    def selections(self) -> Iterator[Selection]:
        yield from self.left.selections()
        if isinstance(self.bound, Expression):
            yield from self.bound.selections()


@dataclass(frozen=True)
class _Both(Expression):
    left: Expression
    sign: str
    right: Expression

    @property
    def labels(self) -> Key:  # type: ignore[override]
        return self.left.labels

    def selections(self) -> Iterator[Selection]:
        yield from self.left.selections()
        yield from self.right.selections()


@dataclass(frozen=True)
class Calculated(_Both):
    """What two values of the same labels make."""

    def promql(self, scale: float = 1.0) -> str:
        return f"{_inside(self.left, scale)} {self.sign} {_inside(self.right, scale)}"

    def value(self, history: History, scale: float = 1.0) -> Vector:
        compute, right = _ARITHMETIC[self.sign], self.right.value(history, scale)
        return {
            key: compute(value, right[key])
            for key, value in self.left.value(history, scale).items()
            if key in right and (self.sign != "/" or right[key])
        }


@dataclass(frozen=True)
class Matched(_Both):
    """The left values where the right side has one (`and`) or none (`unless`) of the same labels:
    those that the right side has, all of which the left side has too.
    """

    def __post_init__(self) -> None:
        if not set(self.right.labels) <= set(self.left.labels):
            raise ValueError(f"{self.right.labels} must be among {self.left.labels}")

    def promql(self, scale: float = 1.0) -> str:
        on = ", ".join(self.right.labels)
        left, right = _inside(self.left, scale), _inside(self.right, scale)
        return f"{left} {self.sign} on ({on}) {right}"

    def value(self, history: History, scale: float = 1.0) -> Vector:
        right, wanted = self.right.value(history, scale), self.sign == "and"
        places = [self.left.labels.index(label) for label in self.right.labels]
        return {
            key: value
            for key, value in self.left.value(history, scale).items()
            if (tuple(key[place] for place in places) in right) == wanted
        }


class Either(_Both):
    """The left values, and the right ones of other labels."""

    def __init__(self, left: Expression, right: Expression) -> None:
        if left.labels != right.labels:
            raise ValueError(f"{left.labels} and {right.labels} must be the same")
        super().__init__(left, "or", right)

    def promql(self, scale: float = 1.0) -> str:
        return f"{_inside(self.left, scale)} or {_inside(self.right, scale)}"

    def value(self, history: History, scale: float = 1.0) -> Vector:
        return {**self.right.value(history, scale), **self.left.value(history, scale)}


def duration(seconds: float) -> str:
    """A duration as Prometheus writes it.

    >>> duration(300), duration(7.5)
    ('5m', '7500ms')
    """
    for unit, length in (("h", 3600), ("m", 60), ("s", 1)):
        if seconds >= length and seconds % length == 0:
            return f"{seconds / length:.0f}{unit}"
    return f"{seconds * 1e3:.0f}ms"


def _inside(part: Expression, scale: float) -> str:
    """A part of a larger expression, in brackets where it needs them."""
    text = part.promql(scale)
    return text if isinstance(part, _Figures) and not isinstance(part, Age) else f"({text})"


def _summed(summary: str, by: Key, what: str) -> str:
    return f"{summary} by ({', '.join(by)}) ({what})" if by else f"{summary}({what})"


def _summarised(values: Iterable[tuple[Key, float]], summary: Summary) -> Vector:
    groups: dict[Key, list[float]] = defaultdict(list)
    for key, value in values:
        if not math.isnan(value):
            groups[key].append(value)
    return {key: _SUMMARIES[summary](group) for key, group in groups.items()}
