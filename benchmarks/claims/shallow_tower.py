"""A shallow tower of position and scenario takes up what is the place's doing, and is left out.

Zhao et al., *Recommending What Video to Watch Next: A Multitask Ranking System*, RecSys 2019: its
logit is added to that of engagement in training; engagement rose by 0.24% online, more than with
the place as a feature or with an adversarial loss.

Here: MMoE with one task on the planted world (`benchmarks._positions`), where a policy puts items
in an order of their own: how well what is served ranks by the true relevance. The paper leaves the
position out of 10% of the training.
"""

from __future__ import annotations

from collections.abc import Mapping

from benchmarks._claims import FRESH, Claim, Report
from benchmarks._positions import orders
from trainers.models.parts.position_bias import PositionConfig


def measure(seed: int, report: Report) -> Mapping[str, float]:
    """The agreement with the truth, with the tower and without."""
    return orders(seed, "promoted", report, shallow=PositionConfig("shallow"))


CLAIMS = (
    Claim(
        "order",
        "what is served ranks nearer to relevance than of a ranker that ignores places",
        measure,
        ours="shallow",
        baseline="ignore",
        seeds=FRESH,
    ),
)
