"""Adversarial removal of bias: the place cannot be told by what the ranker makes of a pair.

Moore et al., *Modeling and Simultaneously Removing Bias via Adversarial Neural Networks*, 2018: on
made data their network ranks better than one with a bypass of the place alone, where features tell
of the place.

Here: MMoE with one task on the planted world (`benchmarks._positions`), where a policy puts items
in an order of their own: the id of an item tells where it stood. `untold` is 1 less the R^2 of the
place, as a linear probe tells it by the base vectors of lists that were not learnt. The bypass
alone is strength 0, and the strong adversary has strength 1,000.

That the adversary gains anything over its bypass does not reproduce: strengths from 0.1 to 1,000
were tried, and the strongest costs more than the bypass had gained. Where the bypass knows the
place, the base has nothing to gain by telling it; and what it forgets of the place, which here only
the item's id tells, it forgets of the item.
"""

from __future__ import annotations

from collections.abc import Mapping

from benchmarks._claims import FRESH, Claim, Report
from benchmarks._positions import found, orders
from trainers.models.parts.position_bias import PositionConfig

_ADVERSARY = PositionConfig("adversarial")
_STRONG = PositionConfig("adversarial", strength=1_000.0)
_BYPASS = PositionConfig("adversarial", strength=0.0)


def measure(seed: int, report: Report) -> Mapping[str, float]:
    """The agreement with the truth of each way."""
    ways = {"adversarial": _ADVERSARY, "strong": _STRONG, "bypass": _BYPASS}
    return orders(seed, "promoted", report, **ways)


def untold(seed: int, report: Report) -> Mapping[str, float]:
    """How little the base vectors say of the place."""
    ways = {"strong": _STRONG, "bypass": _BYPASS}
    made = {name: 1.0 - found(seed, "promoted", way).readable for name, way in ways.items()}
    report(f"    untold: {', '.join(f'{name} {one:.4f}' for name, one in made.items())}")
    return made


CLAIMS = (
    Claim(
        "untold",
        "with a strong adversary the base vector tells less of the place than with none",
        untold,
        ours="strong",
        baseline="bypass",
        seeds=(11, 12, 13, 14, 15),
    ),
    Claim(
        "order",
        "what is served ranks nearer to relevance than of a ranker that ignores places",
        measure,
        ours="adversarial",
        baseline="ignore",
        seeds=FRESH,
    ),
    Claim(
        "bypass",
        "what is served ranks nearer to relevance than with the bypass alone",
        measure,
        ours="adversarial",
        baseline="bypass",
        reproduces=False,
        seeds=FRESH,
    ),
)
