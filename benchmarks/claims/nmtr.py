"""NMTR: behaviours in a cascade say more of the rare one than it says of itself.

Gao et al. (ICDE 2019) compare with the same interaction learnt from purchases alone, on Beibei's
and Tmall's, by how purchases rank among all items.

Here: the planted world with few purchases, after clicks and carts. The AUC of buying over all pairs
of the last fifth, by the world's own probabilities. A purchase has the same weight in both, of 30,
100 and 300 the best for purchases alone; clicks have 10 and carts 100.

All of eight seeds are for the cascade, by .008 to .021. With weights of 1, 10 and 300 it is no
better (.002, -.001 to .004): what comes before must be learnt about as fast. With 1, 10 and 30 it
is ahead by .011, but purchases alone are told worse by .034 than they could be. With the weight 1
they teach nothing (.53 to .58).
"""

from __future__ import annotations

from collections.abc import Mapping

from benchmarks._claims import Claim, Report
from benchmarks._conversions import RARE, SEEDS, Way, find

_BUY = {"buy": {"after": "click", "weight": 300.0}}
_BEFORE = {"click": {"weight": 10.0}, "cart": {"after": "click", "weight": 100.0}}
_WAYS = {"nmtr": Way("nmtr", {**_BEFORE, **_BUY}), "nmtr_alone": Way("nmtr", _BUY)}


def measure(seed: int, report: Report) -> Mapping[str, float]:  # noqa: ARG001
    """The AUC of each."""
    return {name: find(way, seed, RARE).ctcvr for name, way in _WAYS.items()}


CLAIMS = (
    Claim(
        "over_single",
        "who buys is told better by all behaviours than by purchases alone",
        measure, "nmtr", "nmtr_alone", seeds=SEEDS,
    ),
)  # fmt: skip
