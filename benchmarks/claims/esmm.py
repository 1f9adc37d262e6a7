"""ESMM: over all that is shown, one learns better who would buy than over those who clicked.

Ma et al. (SIGIR 2018) compare with the same network for the conversion alone, learnt over clicks,
on Taobao's data, by the AUC over clicks and over all that is shown.

Here: the planted world with few purchases. The AUC of buying once clicked, over all pairs of the
last fifth, clicked on or not, by the world's own probabilities. `clicked` is the same two networks
over shared embeddings with the conversion learnt over clicks, `clicked_alone` without the click's
loss: the paper's baseline, to which no other task teaches embeddings. A purchase has the weight
100 in all, which is the best over clicks of 1 to 300; ESMM would gain .008 more with 300 (seeds 1
to 3).

With 30 over all and 3 over clicks ESMM is ahead by .045, of which most is how fast a rare task is
learnt; with the same weight by .013. In this world people who click convert by the same law as
those who do not, so clicks are a narrow sample but no wrong one.
"""

from __future__ import annotations

from collections.abc import Mapping

from benchmarks._claims import Claim, Report
from benchmarks._conversions import SEEDS, compared


def measure(seed: int, report: Report) -> Mapping[str, float]:  # noqa: ARG001
    """The AUC of each of conversion, and `NAME_ctcvr` of buying."""
    return compared(["esmm", "clicked", "clicked_alone"], seed)


CLAIMS = (
    Claim(
        "over_alone",
        "the entire space tells better who would buy than clicks alone",
        measure, "esmm", "clicked_alone", seeds=SEEDS,
    ),
    Claim(
        "over_clicked",
        "and than clicks with embeddings that the click's task taught too",
        measure, "esmm", "clicked", seeds=SEEDS,
    ),
    Claim(
        "purchases",
        "and who buys of all who are shown something",
        measure, "esmm_ctcvr", "clicked_ctcvr", seeds=SEEDS,
    ),
)  # fmt: skip
