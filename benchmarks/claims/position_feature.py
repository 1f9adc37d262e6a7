"""The place as a feature: pairs that are all asked about at one place are ranked better.

The plainest correction of position bias, and the baseline of Guo et al., *PAL: A Position-bias
Aware Learning Framework for CTR Prediction in Live Recommender Systems*, RecSys 2019: a network
that is told where an item stood need not take the place's doing for the item's.

Here: MMoE with one task on the planted world, where a policy puts items in an order of their own
(`benchmarks._positions`), how well what it serves ranks by the true relevance, against the same
network that is told nothing. As in the paper, much may hang on the place that is served: the top is
compared with the sixth; that makes little difference, and three seeds do not bound it by .01.

`trivago`: of two neighbours in real lists of hotels, half of the lists learnt, which is clicked on
(`benchmarks.claims.pal`): of them by .010 more (.003 to .018).
"""

from __future__ import annotations

from collections.abc import Mapping

from benchmarks._claims import FRESH, Claim, Report
from benchmarks._logs import SEEDS
from benchmarks._positions import orders
from benchmarks.claims.pal import trivago
from trainers.models.parts.position_bias import PositionConfig


def measure(seed: int, report: Report) -> Mapping[str, float]:
    """The agreement with the truth of a ranker with and without the feature."""
    return orders(
        seed,
        "promoted",
        report,
        feature=PositionConfig("feature"),
        sixth=PositionConfig("feature", served=5),
    )


CLAIMS = (
    Claim(
        "order",
        "a ranker that knows the place ranks nearer to relevance than one that ignores it",
        measure,
        ours="feature",
        baseline="ignore",
        seeds=FRESH,
    ),
    Claim(
        "served",
        "which place is served makes little difference: the sixth is not worse than the top",
        measure,
        ours="sixth",
        baseline="feature",
        margin=0.01,
        reproduces=False,
        seeds=FRESH,
    ),
    Claim(
        "trivago",
        "of two neighbours in a list of hotels it knows better which is clicked on",
        trivago,
        ours="feature",
        baseline="ignore",
        seeds=SEEDS,
    ),
)
