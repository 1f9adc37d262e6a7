"""MMoE with ESMM: experts and the entire space help each other.

Not one paper's claim but the seed of two: ESMM's networks share embeddings only, and MMoE's tasks
know nothing of each other's order. Together they are held against each alone, on the planted world
with few purchases, by the AUC of buying once clicked and of buying, over all pairs of the last
fifth, by the world's own probabilities. What MMoE says of conversion is its purchase over its
click.

None is sure: it is ahead of MMoE by .005 (-.001 to .011) and of ESMM by .002 (-.000 to .004), and
of MMoE by .006 (-.000 to .012) in who buys. With a purchase that counts 30 in place of 100 there
was nothing. Two tasks that are this near to each other hardly need experts.
"""

from __future__ import annotations

from collections.abc import Mapping

from benchmarks._claims import Claim, Report
from benchmarks._conversions import SEEDS, compared


def measure(seed: int, report: Report) -> Mapping[str, float]:  # noqa: ARG001
    """The AUC of each."""
    return compared(["mmoe_esmm", "mmoe", "esmm"], seed)


CLAIMS = (
    Claim(
        "over_mmoe",
        "who would buy, better than MMoE",
        measure, "mmoe_esmm", "mmoe", seeds=SEEDS, reproduces=False,
    ),
    Claim(
        "over_esmm",
        "and than ESMM",
        measure, "mmoe_esmm", "esmm", seeds=SEEDS, reproduces=False,
    ),
    Claim(
        "purchases",
        "who buys, better than MMoE",
        measure, "mmoe_esmm_ctcvr", "mmoe_ctcvr", seeds=SEEDS, reproduces=False,
    ),
)  # fmt: skip
