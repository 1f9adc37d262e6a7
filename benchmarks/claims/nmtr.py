"""NMTR: behaviours in a cascade say more of the rare one than it says of itself.

Gao et al. (ICDE 2019) compare with the same interaction learnt from purchases alone, on Beibei's
and Tmall's, by how purchases rank among all items.

Here: the planted world with few purchases, after clicks and carts. The AUC of buying over all pairs
of the last fifth, by the world's own probabilities. A purchase has the same weight in both.

Four seeds of five are for the cascade, by .004 to .028, and one against it; so it is with half the
days. With the weight 1 purchases alone teach nothing (.50 to .56).
"""

from __future__ import annotations

from collections.abc import Mapping

from benchmarks._claims import Claim, Report
from benchmarks._conversions import SEEDS, compared


def measure(seed: int, report: Report) -> Mapping[str, float]:  # noqa: ARG001
    """The AUC of each."""
    found = compared(["nmtr", "nmtr_alone"], seed)
    return {name: found[f"{name}_ctcvr"] for name in ("nmtr", "nmtr_alone")}


CLAIMS = (
    Claim(
        "over_single",
        "who buys is told better by all behaviours than by purchases alone",
        measure, "nmtr", "nmtr_alone", seeds=SEEDS, reproduces=False,
    ),
)  # fmt: skip
