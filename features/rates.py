"""Rates such as CTR and CVR of keys with few trials, drawn towards what is usual.

The rate of a key is thought of as drawn from a Beta distribution that all keys share, and its
successes as binomial: then the best guess of the rate is `(successes + a) / (trials + a + b)`. The
prior (a, b) is fitted to the stream itself, empirical Bayes: first by the moments of rates with
unequal numbers of trials (Kleinman, JASA 1973), then by Newton steps on the likelihood of the
counts (Minka, "Estimating a Dirichlet distribution", 2000; for CTR: Wang et al., "Click-through
rate estimation for rare events in online advertising", 2011).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import PositiveFloat, PositiveInt

from features.decayed import US, DecayedSums
from streaming.artefact import Artefact
from streaming.kernels import compiled, internal

Ids = NDArray[np.int64]
Floats = NDArray[np.float64]

_FIRST_FIT = 1_000  # events; then after twice as many, up to every `fit_every`
_FITTED = 4_096  # keys that a fit looks at, evenly among all
_WEAKEST = 0.1  # a prior of fewer trials would say that every key has a rate of 0 or of 1
_NEWTON_STEPS, _HALVINGS = 30, 20
_NEAR = 1e-8  # a step by this part of a parameter changes nothing


class Beta(NamedTuple):
    """A Beta distribution; `a + b` says how many trials it weighs as much as."""

    a: float
    b: float

    @property
    def mean(self) -> float:
        """The rate of a key that nothing is known of."""
        return self.a / (self.a + self.b)


@dataclass(frozen=True)
class RateConfig:
    """`half_life_s` may be infinite; `most` keys are kept, those with the most recent trials.

    Until the first fit, after 1,000 events, keys are drawn towards `rate` with the weight of
    `strength` trials; the fit is made anew after every `fit_every` events at the latest.
    """

    half_life_s: PositiveFloat = math.inf
    most: PositiveInt = 1_000_000
    rate: PositiveFloat = 0.05
    strength: PositiveFloat = 20.0
    fit_every: PositiveInt = 100_000


class SmoothedRates:
    """The rate of successes by key: clicks of impressions (CTR), purchases of clicks (CVR).

    >>> ctr = SmoothedRates("ctr", RateConfig(rate=0.1, strength=10))
    >>> impressions, clicks = np.array([1.0, 90.0]), np.array([1.0, 18.0])
    >>> ctr.update(np.array([7, 8]), np.array([0, 0]), impressions, clicks)
    >>> ctr.get(np.array([7, 8, 9]), at_us=0)
    array([0.18181818, 0.19      , 0.1       ])
    """

    def __init__(self, name: str, config: RateConfig, state: Artefact | None = None) -> None:
        self._name, self._config = f"rate_{name}", config
        self.prior = Beta(config.rate * config.strength, (1 - config.rate) * config.strength)
        self._seen, self._next_fit = 0, min(_FIRST_FIT, config.fit_every)
        half_life_us = config.half_life_s * US
        table = None if state is None else state.shards[self._name]
        half_lives = {"trials": half_life_us, "successes": half_life_us}
        self._sums = DecayedSums(half_lives, config.most, state=table)
        if table is not None:
            metadata = table.schema.metadata
            self.prior = Beta(*(float.fromhex(metadata[name].decode()) for name in (b"a", b"b")))
            self._seen, self._next_fit = int(metadata[b"seen"]), int(metadata[b"next_fit"])

    def __len__(self) -> int:
        return len(self._sums)

    def update(self, keys: Ids, at_us: Ids, trials: Floats, successes: Floats) -> None:
        """Counts n events in order; a success may come with its trial or in a later event."""
        values = np.column_stack([trials, successes]).astype(np.float64)
        done = 0
        while done < len(keys):
            part = slice(done, done + self._next_fit - self._seen)
            self._sums.add(keys[part], at_us[part], values[part])
            done += len(keys[part])
            self._seen += len(keys[part])
            if self._seen == self._next_fit:
                self._fit(int(at_us[done - 1]))
                self._next_fit += min(self._next_fit, self._config.fit_every)

    def get(self, keys: Ids, at_us: int) -> Floats:
        """The smoothed rate of each key, (n,), above 0 and below 1; an unknown one has the prior's.

        Successes beyond the trials, which may have faded more, count as trials too.
        """
        trials, successes = self._sums.get(keys, at_us).T
        trials = np.maximum(trials, successes)
        found: Floats = (successes + self.prior.a) / (trials + self.prior.a + self.prior.b)
        return found

    def newest_us(self, keys: Ids) -> Ids:
        """The event time of the newest event of each key, (n,), 0 for an unknown one."""
        return self._sums.newest_us(keys)

    def merge(self, other: SmoothedRates) -> None:
        """Adds what another one counted, and fits the prior to it all as of the newest event."""
        self._sums.merge(other._sums)
        self._seen += other._seen
        self._next_fit = self._seen + self._config.fit_every
        newest_us = self._sums.newest_us(self._sums.ids)
        self._fit(int(newest_us.max(initial=0)))

    def tables(self) -> dict[str, pa.Table]:
        """All of the state, as the shard `rate_<name>`."""
        table = self._sums.table()
        mine = {
            "a": self.prior.a.hex(), "b": self.prior.b.hex(),
            "seen": str(self._seen), "next_fit": str(self._next_fit),
        }  # fmt: skip
        return {self._name: table.replace_schema_metadata({**table.schema.metadata, **mine})}

    def _fit(self, at_us: int) -> None:
        every = -(-len(self._sums) // _FITTED) or 1
        trials, successes = self._sums.get_all(at_us)[::every].T
        fitted = fit_beta(np.maximum(trials, successes), successes)
        self.prior = fitted or self.prior


def fit_beta(trials: Floats, successes: Floats) -> Beta | None:
    """The Beta distribution that explains the counts of n keys best; None without any trials.

    The prior weighs at most as much as all trials together, and never nothing, and half a success
    and half a failure are taken as seen before: keys that do not differ at all, or have no success,
    give a sound prior too.

    >>> a, b = fit_beta(np.full(4, 100.0), np.array([5.0, 10.0, 15.0, 30.0]))
    >>> print(f"{a:.2f} {b:.2f}")
    2.62 14.21
    """
    tried = trials > 0
    trials, successes = trials[tried], successes[tried]
    if len(trials) == 0:
        return None
    start = _by_moments(trials, successes)
    most = max(1.0, float(trials.sum()))
    return Beta(*_by_newton(trials, successes, start, most))


def _by_moments(trials: Floats, successes: Floats) -> Beta:
    """Makes the weighted variance of the rates what it is expected to be."""
    total = trials.sum()
    mean = (successes.sum() + 0.5) / (total + 1.0)
    weights = trials / total
    variance = (weights * (successes / trials - mean) ** 2).sum() / (mean * (1.0 - mean))
    by_chance = (weights * (1.0 - weights) / trials).sum()
    by_keys = (weights * (1.0 - weights)).sum() - by_chance
    # The correlation of two trials of one key is 1 / (a + b + 1).
    correlation = (variance - by_chance) / by_keys if by_keys > 0 else 0.0
    strength = 1.0 / correlation - 1.0 if correlation > 0 else math.inf
    strength = min(max(strength, _WEAKEST), max(1.0, float(total)))
    return Beta(float(mean * strength), float((1.0 - mean) * strength))


# -- compiled --------------------------------------------------------------------------------


@internal
def _digamma(x: float) -> float:
    found = 0.0
    while x < 6.0:
        found -= 1.0 / x
        x += 1.0
    y = 1.0 / (x * x)
    return found + math.log(x) - 0.5 / x - y * (1 / 12 - y * (1 / 120 - y * (1 / 252 - y / 240)))


@internal
def _trigamma(x: float) -> float:
    found = 0.0
    while x < 6.0:
        found += 1.0 / (x * x)
        x += 1.0
    y = 1.0 / (x * x)
    return found + 1.0 / x + y / 2 + y / x * (1 / 6 - y * (1 / 30 - y * (1 / 42 - y / 30)))


@internal
def _likelihood(trials: Any, successes: Any, a: float, b: float) -> float:
    """Its logarithm, with half a success and half a failure before: no rate is surely 0 or 1."""
    found = 0.5 * math.log(a) + 0.5 * math.log(b) - math.log(a + b)
    for i in range(trials.size):
        n, s = trials[i], successes[i]
        found += math.lgamma(s + a) - math.lgamma(a) + math.lgamma(n - s + b) - math.lgamma(b)
        found -= math.lgamma(n + a + b) - math.lgamma(a + b)
    return found


@internal
def _newton_step(trials: Any, successes: Any, a: float, b: float) -> tuple[float, float]:
    """The step of (ln a, ln b), which is up the slope where the likelihood is not concave."""
    by_ab = 1.0 / (a + b) ** 2
    by_a, by_b = 0.5 / a - 1.0 / (a + b), 0.5 / b - 1.0 / (a + b)
    by_aa, by_bb = by_ab - 0.5 / a**2, by_ab - 0.5 / b**2
    for i in range(trials.size):
        n, s = trials[i], successes[i]
        both = _digamma(a + b) - _digamma(n + a + b)
        by_a += _digamma(s + a) - _digamma(a) + both
        by_b += _digamma(n - s + b) - _digamma(b) + both
        bent = _trigamma(a + b) - _trigamma(n + a + b)
        by_aa += _trigamma(s + a) - _trigamma(a) + bent
        by_bb += _trigamma(n - s + b) - _trigamma(b) + bent
        by_ab += bent
    by_aa, by_ab, by_bb = a * (a * by_aa + by_a), a * b * by_ab, b * (b * by_bb + by_b)
    by_a, by_b = a * by_a, b * by_b
    determinant = by_aa * by_bb - by_ab * by_ab
    if by_aa < 0.0 and determinant > 0.0:
        step_a = (by_ab * by_b - by_bb * by_a) / determinant
        step_b = (by_ab * by_a - by_aa * by_b) / determinant
    else:
        steepest = max(abs(by_a), abs(by_b), 1e-300)
        step_a, step_b = by_a / steepest, by_b / steepest
    longest = max(abs(step_a), abs(step_b), 1.0)
    return step_a / longest, step_b / longest


@compiled
def _by_newton(trials: Any, successes: Any, start: Any, most: float) -> Any:
    """Steps that make the counts likelier, from `start` to where none does."""
    a, b = start
    found = _likelihood(trials, successes, a, b)
    for _ in range(_NEWTON_STEPS):
        step_a, step_b = _newton_step(trials, successes, a, b)
        length, better = 1.0, found
        next_a, next_b = a, b
        for _ in range(_HALVINGS):
            next_a, next_b = a * math.exp(length * step_a), b * math.exp(length * step_b)
            if _WEAKEST <= next_a + next_b <= most:
                better = _likelihood(trials, successes, next_a, next_b)
            if better > found:
                break
            length /= 2
        if better <= found:
            break
        a, b, found = next_a, next_b, better
        if max(abs(length * step_a), abs(length * step_b)) < _NEAR:
            break
    return a, b
