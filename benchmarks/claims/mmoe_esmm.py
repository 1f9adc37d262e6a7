"""MMoE with ESMM: experts and the entire space help each other.

Not one paper's claim but the seed of two: ESMM's networks share embeddings only, and MMoE's tasks
know nothing of each other's order. Together they are held against each alone, on the planted world
with few purchases, by the AUC of buying once clicked and of buying, over all pairs of the last
fifth, by the world's own probabilities. What MMoE says of conversion is its purchase over its
click.

Neither reproduces: by the AUC of buying once clicked it is as good as MMoE (-.000, -.011 to .010)
and ahead of ESMM by .003 (-.000 to .006). Weights and rates of purchases were chosen on seeds 1 to
5. Two tasks that are this near to each other need no experts.
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
