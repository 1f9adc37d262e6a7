"""How often each id comes by in a stream, in fixed memory.

Yi et al., "Sampling-Bias-Corrected Neural Modeling for Large Corpus Item Recommendations",
RecSys 2019, algorithms 2 and 3. In-batch negatives are drawn as often as their items are popular;
subtracting `log p` of each item from its logit takes that bias out again.
"""

import json
import math
from dataclasses import asdict, dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class FrequencyConfig:
    """What a `FrequencyEstimator` costs and how fast it forgets.

    `buckets` are per hash: the arrays hold `hashes * buckets` entries of 16 bytes (20 in "whole").
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

    >>> estimator = FrequencyEstimator(FrequencyConfig(alpha=0.1, buckets=1024))
    >>> for _ in range(50):
    ...     estimator.update(np.array([9]))
    ...     estimator.update(np.array([9, 7, 7, 7]))  # 7: three times every other step
    >>> estimator.probability(np.array([9, 7, 8])).round(3)  # 8: not seen in 100 steps
    array([1.  , 1.5 , 0.01])
    """

    def __init__(self, config: FrequencyConfig) -> None:
        size = config.hashes * config.buckets
        seed = np.array([config.seed], dtype=np.uint64)
        nth = np.arange(config.hashes, dtype=np.uint64)[:, None]  # (m, 1)
        self.config = config
        self._multiplier = _mix(_mix(seed) + nth) | 1  # (m, 1), odd
        self._offset = nth * config.buckets  # (m, 1), where the buckets of each hash begin
        self._clock = 0.0
        self._last = np.zeros(size)  # (m * buckets,), A
        self._gap = np.full(size, config.initial_gap)  # (m * buckets,), B
        self._hits = np.zeros(size if config.first_hit == "whole" else 0, dtype=np.int32)

    def update(self, ids: NDArray[np.int64], elapsed: float = 1.0) -> None:
        """Advance the clock by `elapsed`, then learn that `ids` (n,) came by, repeats included.

        One unit of the clock is whatever the caller counts: 1 per call measures gaps in steps, as
        the paper does; the number of samples in the call measures them in samples, which keeps its
        meaning when steps are uneven. Leave padding out. ValueError unless `elapsed` is positive.
        """
        if not 0 < elapsed < math.inf:
            raise ValueError(f"elapsed must be positive and finite: {elapsed!r}")
        self._clock += elapsed
        at = self._places(ids).ravel()
        count = np.ones(1, dtype=np.int64)
        if self.config.count_aware:
            at, count = np.unique(at, return_counts=True)
        # Else repeats may stay: each of them reads the old values and writes the same new ones.
        weight = np.minimum(self.config.alpha * count, 1.0)
        if self.config.first_hit == "whole":
            hits = self._hits[at] + count
            weight = np.maximum(weight, count / hits)
            self._hits[at] = np.minimum(hits, math.ceil(1 / self.config.alpha))
        gap = (self._clock - self._last[at]) / count
        self._gap[at] = (1 - weight) * self._gap[at] + weight * gap
        self._last[at] = self._clock

    def probability(self, ids: NDArray[np.int64]) -> NDArray[np.float64]:
        """Frequency (n,) of each of `ids` (n,) per unit of the clock; changes nothing.

        Above 0, and at most 1 unless count-aware. An id that was never hit gets
        `1 / initial_gap` in "paper" and `1 / max(clock, 1)` in "whole".
        """
        at = self._places(ids)  # (m, n)
        gap = self._gap[at]
        if self.config.first_hit == "whole":
            gap = np.where(self._hits[at] > 0, gap, max(self._clock, 1.0))
        p: NDArray[np.float64] = 1 / gap.max(axis=0)
        return p if self.config.count_aware else np.minimum(p, 1.0)

    def state(self) -> dict[str, NDArray[np.generic]]:
        """A copy of all that was learnt, clock included: it belongs into the checkpoint's one cut.

        A clock restored without its arrays, or the reverse, would stretch every gap.
        """
        config = json.dumps(asdict(self.config)).encode()
        return {
            "config": np.frombuffer(config, dtype=np.uint8).copy(),
            "clock": np.array(self._clock),
            "last": self._last.copy(),
            "gap": self._gap.copy(),
            "hits": self._hits.copy(),
        }

    def load(self, state: dict[str, NDArray[np.generic]]) -> None:
        """Go on exactly where `state()` was taken.

        ValueError names what differs from this estimator, which is then left as it was.
        """
        mine = self.state()
        if state.keys() != mine.keys():
            raise ValueError(f"state has {sorted(state)}, expected {sorted(mine)}")
        saved = json.loads(state["config"].tobytes())
        for field, value in asdict(self.config).items():
            if saved.get(field) != value:
                raise ValueError(f"state has {field}={saved.get(field)!r}, expected {value!r}")
        for name in ("clock", "last", "gap", "hits"):
            theirs, ours = state[name], mine[name]
            if (theirs.shape, theirs.dtype) != (ours.shape, ours.dtype):
                raise ValueError(
                    f"state has {name} of {theirs.dtype}{theirs.shape}, "
                    f"expected {ours.dtype}{ours.shape}"
                )
        self._clock = float(state["clock"].item())
        self._last[:] = state["last"]
        self._gap[:] = state["gap"]
        self._hits[:] = state["hits"]

    def _places(self, ids: NDArray[np.int64]) -> NDArray[np.int64]:
        """Where `ids` (n,) lie in the arrays, one row per hash: (m, n)."""
        # + 1, or id 0 would hash alike under every multiplier.
        mixed = _mix((ids.astype(np.uint64) + 1) * self._multiplier)
        return (mixed % self.config.buckets + self._offset).astype(np.int64)


def _mix(z: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """One output of splitmix64 (Steele et al., OOPSLA 2014): every bit of `z` reaches every bit."""
    z = z + 0x9E3779B97F4A7C15
    z = (z ^ (z >> np.uint64(30))) * 0xBF58476D1CE4E5B9
    z = (z ^ (z >> np.uint64(27))) * 0x94D049BB133111EB
    return z ^ (z >> np.uint64(31))
