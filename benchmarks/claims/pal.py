"""PAL: a click is being noticed, by the place, times being liked, and only the second is served.

Guo et al., *PAL: A Position-bias Aware Learning Framework for CTR Prediction in Live Recommender
Systems*, RecSys 2019. They compare it with the place as a feature, online, at Huawei's app store.

Here: MMoE with one task on the planted world (`benchmarks._positions`), which clicks as PAL thinks.
Where a policy puts items in an order of their own, how well what is served ranks by the true
relevance, against a ranker that ignores places and one that has them as a feature. Where the policy
ranks by taste, how near what it learns of places is to the true probabilities of being noticed, up
to a factor, against the click rates of the places: these are those of better items too.
"""

from __future__ import annotations

from collections.abc import Mapping

from benchmarks._claims import FRESH, Claim, Report
from benchmarks._positions import found, off, orders
from trainers.models.parts.position_bias import PositionConfig

_PAL = PositionConfig("pal")


def measure(seed: int, report: Report) -> Mapping[str, float]:
    """The agreement with the truth of each way."""
    return orders(seed, "promoted", report, pal=_PAL, feature=PositionConfig("feature"))


def places(seed: int, report: Report) -> Mapping[str, float]:
    """How near places are to the truth: less than 0 by how far they are off."""
    made = found(seed, "ranked", _PAL)
    for name, told in (("seen", made.seen), ("pal", made.noticed), ("clicked", made.clicked)):
        report(f"    {name}: {', '.join(f'{one:.2f}' for one in told)}")
    return {"pal": -off(made.noticed, made.seen), "clicked": -off(made.clicked, made.seen)}


CLAIMS = (
    Claim(
        "order",
        "what PAL serves ranks nearer to relevance than a ranker that ignores places",
        measure,
        ours="pal",
        baseline="ignore",
        seeds=FRESH,
    ),
    Claim(
        "feature",
        "what PAL serves ranks nearer to relevance than with the place as a feature",
        measure,
        ours="pal",
        baseline="feature",
        reproduces=False,
        seeds=FRESH,
    ),
    Claim(
        "places",
        "what PAL learns of places is nearer to the truth than their click rates",
        places,
        ours="pal",
        baseline="clicked",
        reproduces=False,
        seeds=FRESH,
    ),
)
