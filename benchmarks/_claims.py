"""A claim: one variant is better than another, by the mean over seeds of what they differ by."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import sqrt
from statistics import mean, stdev

FRESH = (11, 12, 13)  # seeds for who chose settings by looking at 1, 2 and 3
Report = Callable[[str], None]
Measure = Callable[[int, Report], Mapping[str, float]]

# The 97.5% quantiles of Student's t with 1, 2, ... degrees of freedom.
_QUANTILES = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)


@dataclass(frozen=True)
class Claim:
    """What `measure` finds under the name `ours` is more than what it finds under `baseline`.

    `measure(seed, report)` runs all variants with one seed and answers with a figure for each by
    name, more of which is better. Claims that share it share its runs. A claim holds if the 95%
    interval of the difference begins above `-margin`: with a margin it says that something is not
    worse. One that does not hold has `reproduces=False`; its module says what was tried.
    """

    name: str
    says: str
    measure: Measure
    ours: str
    baseline: str
    margin: float = 0.0
    reproduces: bool = True
    seeds: tuple[int, ...] = (1, 2, 3)


def compare(claims: Sequence[Claim], report: Report) -> dict[str, float]:
    """Measures claims: `NAME`, the mean difference, its interval `NAME_low` to `NAME_high`, and
    what the variants have found on average, `NAME_ours` and `NAME_baseline`.
    """
    found: dict[tuple[Measure, int], Mapping[str, float]] = {}
    figures: dict[str, float] = {}
    for claim in claims:
        for seed in claim.seeds:
            if (claim.measure, seed) not in found:
                begun = time.perf_counter()
                told = found[claim.measure, seed] = claim.measure(seed, report)
                values = ", ".join(f"{name} {value:.4f}" for name, value in told.items())
                report(f"  seed {seed}, {time.perf_counter() - begun:.0f} s: {values}")
        ours, theirs = (
            [found[claim.measure, seed][name] for seed in claim.seeds]
            for name in (claim.ours, claim.baseline)
        )
        middle, low, high = interval([a - b for a, b in zip(ours, theirs, strict=True)])
        holds = "holds" if low > -claim.margin else "does not hold"
        report(
            f"{claim.name}: {claim.says}: {claim.ours} {mean(ours):.4f}, {claim.baseline}"
            f" {mean(theirs):.4f}, difference {middle:+.4f} ({low:+.4f} to {high:+.4f}): {holds}"
        )
        figures |= {
            claim.name: middle,
            f"{claim.name}_low": low,
            f"{claim.name}_high": high,
            f"{claim.name}_ours": mean(ours),
            f"{claim.name}_baseline": mean(theirs),
        }
    return figures


def interval(differences: Sequence[float]) -> tuple[float, float, float]:
    """The mean of paired differences and its 95% interval by Student's t, of 2 to 10 of them.

    >>> [round(bound, 3) for bound in interval([1.0, 2.0, 3.0])]
    [2.0, -0.484, 4.484]
    """
    middle = mean(differences)
    reach = _QUANTILES[len(differences) - 2] * stdev(differences) / sqrt(len(differences))
    return middle, middle - reach, middle + reach
