"""How often each id comes by in a stream, in fixed memory.

Yi et al., "Sampling-Bias-Corrected Neural Modeling for Large Corpus Item Recommendations",
RecSys 2019, algorithms 2 and 3. In-batch negatives are drawn as often as their items are popular;
subtracting `log p` of each item from its logit takes that bias out again.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from trainers.frequency_kernels import (
    ENTRY,
    count_repeats,
    count_used,
    draw_multipliers,
    find_places,
    learn_gaps,
    longest_gaps,
)

_LEARNT = ("last", "gap", "hits")  # the fields of an entry that a state holds


@dataclass(frozen=True)
class FrequencyConfig:
    """What a `FrequencyEstimator` costs and how fast it forgets.

    `buckets` are per hash: `hashes * buckets` entries of 24 bytes, and of 20 bytes in a cut.
    `alpha` is the weight of the newest gap. `initial_gap`, in units of the clock, counts only in
    "paper".
    """

    hashes: int = 1
    buckets: int = 1 << 18
    alpha: float = 0.01
    initial_gap: float = 100.0
    first_hit: Literal["paper", "whole"] = "whole"
    count_aware: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        valid = {
            "hashes": self.hashes >= 1,
            "buckets": self.buckets >= 1,
            "alpha": 1e-9 <= self.alpha <= 1,  # so that 1 / alpha fits an int32
            "initial_gap": 0 < self.initial_gap < math.inf,
            "first_hit": self.first_hit in ("paper", "whole"),
            "seed": 0 <= self.seed < 1 << 63,
        }
        for field, ok in valid.items():
            if not ok:
                raise ValueError(f"FrequencyConfig.{field} is invalid: {getattr(self, field)!r}")


class FrequencyEstimator:
    """A moving average of the gap between the hits of an id; its inverse is the id's frequency.

    Each id falls into one bucket per hash. A bucket keeps `A`, the clock at its last hit, and `B`,
    the mean gap. When the clock stands at `t`, a bucket hit `c` times in the step learns

        B <- (1 - w) B + w (t - A) / c        A <- t        w = min(alpha c, 1)

    and the frequency of an id is `1 / max B` over its buckets (algorithm 3: a collision can only
    shorten a gap). Without `count_aware`, `c = 1` however often the bucket was hit: algorithm 2,
    whose `p` is the chance to be in a step and cannot exceed 1. With it, `p` is the expected number
    of hits per unit of the clock, which tells an item seen four times in every batch from one seen
    once. The factor `c` in `w` keeps `B` unbiased: it weights `gap / c` by the hits it stands for.

    A first hit is taken in one of two ways:

    - "paper": `B` starts at `initial_gap` and `A` at 0, so that the start fades as
      `(1 - alpha) ** hits`, as in algorithm 2.
    - "whole": the first hit takes the whole clock as its gap, and `w` is at least `c / n`, where
      `n` counts the hits of the bucket, these included. Until `n` reaches `1 / alpha`, `B` is thus
      the plain mean `A / n`; from there on it is the moving average above.

    In a trainer group each rank has an estimator of its own, of the same config. It takes the ids
    that its rank owns, and the samples of all ranks as `elapsed`: a collision apart, `p` is then
    what one estimator fed with everything would say. `merge_states` brings the ranks together.

    >>> estimator = FrequencyEstimator(FrequencyConfig(alpha=0.1, buckets=1024))
    >>> for _ in range(50):
    ...     estimator.update(np.array([9]))
    ...     estimator.update(np.array([9, 7, 7, 7]))  # 7: three times every other step
    >>> estimator.probability(np.array([9, 7, 8])).round(3)  # 8: not seen in 100 steps
    array([1.  , 1.5 , 0.01])
    """

    def __init__(self, config: FrequencyConfig) -> None:
        self.config = config
        self._multipliers = np.empty(config.hashes, np.uint64)  # (m,)
        draw_multipliers(config.seed, self._multipliers)
        self._clock = 0.0
        self._entries = np.zeros(config.hashes * config.buckets, ENTRY)  # (m * buckets,)
        self._entries["gap"] = config.initial_gap

    def update(self, ids: NDArray[np.int64], elapsed: float = 1.0) -> None:
        """Advance the clock by `elapsed`, then learn that `ids` (n,) came by, repeats included.

        One unit of the clock is whatever the caller counts: 1 per call measures gaps in steps, as
        the paper does; the number of samples in the call measures them in samples, which keeps its
        meaning when steps are uneven. Leave padding out. ValueError unless the clock advances.
        """
        if not self._clock < self._clock + elapsed < math.inf:
            raise ValueError(
                f"elapsed must be positive and finite, and move the clock on from {self._clock!r}:"
                f" {elapsed!r}"
            )
        self._clock += elapsed
        places = self._places(ids).ravel()
        hit = places[: count_repeats(self._entries, places)]
        whole, count_aware = self.config.first_hit == "whole", self.config.count_aware
        learn_gaps(self._entries, hit, self._clock, self.config.alpha, whole, count_aware)

    def probability(self, ids: NDArray[np.int64]) -> NDArray[np.float64]:
        """Frequency (n,) of each of `ids` (n,) per unit of the clock; changes nothing.

        Above 0, and at most 1 unless count-aware. An id that was never hit gets
        `1 / initial_gap` in "paper" and `1 / max(clock, 1)` in "whole".
        """
        whole = self.config.first_hit == "whole"
        unseen = max(self._clock, 1.0) if whole else self.config.initial_gap
        gaps = np.empty(len(ids))
        longest_gaps(self._entries, self._places(ids), unseen, gaps)
        p: NDArray[np.float64] = 1 / gaps
        return p if self.config.count_aware else np.minimum(p, 1.0)

    def figures(self, step: float = 1.0) -> dict[str, float]:
        """How far the estimate can be trusted, from one pass over the entries.

        `frequency_clock`; `frequency_buckets_used`, the share of the entries ever hit, which is
        the chance of a new id to collide under one hash; `frequency_saturated`, the share of those
        used that are hit at least once in `step` units of the clock. With `step` as long as a
        training step, these are the ids that only `count_aware` tells apart.
        """
        used, saturated = count_used(self._entries, step)
        return {
            "frequency_clock": self._clock,
            "frequency_buckets_used": used / self._entries.size,
            "frequency_saturated": saturated / max(used, 1),
        }

    def state(self) -> dict[str, NDArray[np.generic]]:
        """A copy of all that was learnt, clock included: it belongs into the checkpoint's one cut.

        A clock restored without its arrays, or the reverse, would stretch every gap.
        """
        return {name: array.copy() for name, array in self._arrays().items()}

    def load(self, state: Mapping[str, NDArray[np.generic]]) -> None:
        """Go on exactly where `state()` was taken.

        ValueError names what differs from this estimator, which is then left as it was.
        """
        _check(state, self._arrays())
        self._clock = float(state["clock"].item())
        for name in _LEARNT:
            self._entries[name] = state[name]

    def _places(self, ids: NDArray[np.int64]) -> NDArray[np.int64]:
        """Where in the entries `ids` (n,) lie, one column per hash: (n, m)."""
        places = np.empty((len(ids), self.config.hashes), np.int64)
        find_places(ids, self._multipliers, self.config.buckets, places)
        return places

    def _arrays(self) -> dict[str, NDArray[Any]]:
        """What `state` copies."""
        config = json.dumps(asdict(self.config)).encode()
        return {
            "config": np.frombuffer(config, dtype=np.uint8),
            "clock": np.array(self._clock),
            **{name: self._entries[name] for name in _LEARNT},  # (m * buckets,) each
        }


def merge_states(states: Sequence[Mapping[str, NDArray[Any]]]) -> dict[str, NDArray[Any]]:
    """One state out of those of all ranks at one cut, for each of any number of ranks to load.

    Every entry is that of the rank that hit it last; of two hit in the same step, that of the
    shorter gap, as a collision would have it. With one rank this is its state. With more it is, to
    the bit and however often ids change their owners, what one estimator fed with everything would
    hold, except for entries that ids of different ranks share: these hold what one of the ranks
    learnt, instead of all ranks' hits together, and move on by `alpha`. An entry keeps no ids, so
    that new owners cannot part it.

    ValueError names what differs between the ranks.
    """
    first, *others = states
    merged = {name: array.copy() for name, array in first.items()}
    for state in others:
        _check(state, first)
        if state["clock"] != first["clock"]:
            raise ValueError(
                f"state has clock={state['clock']!r}, expected {first['clock']!r}: give every rank"
                " the samples of all ranks as `elapsed`, and merge states of one cut"
            )
        newer = state["last"] > merged["last"]
        newer |= (state["last"] == merged["last"]) & (state["gap"] < merged["gap"])
        for name in _LEARNT:
            np.copyto(merged[name], state[name], where=newer)
    return merged


def _check(state: Mapping[str, NDArray[Any]], expected: Mapping[str, NDArray[Any]]) -> None:
    """ValueError names in what `state` cannot stand for `expected`."""
    if state.keys() != expected.keys():
        raise ValueError(f"state has {sorted(state)}, expected {sorted(expected)}")
    saved = json.loads(state["config"].tobytes())
    for field, value in json.loads(expected["config"].tobytes()).items():
        if saved.get(field) != value:
            raise ValueError(f"state has {field}={saved.get(field)!r}, expected {value!r}")
    for name in ("clock", *_LEARNT):
        theirs, ours = state[name], expected[name]
        if (theirs.shape, theirs.dtype) != (ours.shape, ours.dtype):
            raise ValueError(
                f"state has {name} of {theirs.dtype}{theirs.shape}, "
                f"expected {ours.dtype}{ours.shape}"
            )
