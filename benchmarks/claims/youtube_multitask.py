"""YouTube's ranking: clicks are of the place too, and a tower that is left out takes that away.

Zhao et al. (RecSys 2019, section 5.3) measure online what a shallow tower of the position adds to
MMoE, against none and against the position as a feature.

Here: the planted world, where a policy put items in an order that has nothing to do with how they
please, so that clicks speak of places. How well the click that is served ranks by the true
relevance, within the lists of the last fifth, of the whole system (clicks, watching, likes) with
its tower, without, and with the position as a feature. Watching and likes have small weights, and
the tower the click alone. With the weights 1 and towers for both the click and watching there is no
difference (.622 and .622): what is watched of all that is shown is a product with the click, and
what the place does to it is no summand.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from benchmarks._claims import FRESH, Claim, Report
from benchmarks._conversions import Way, learner, parts, teach
from benchmarks._impressions import WORLD, Setting, agreement, asked, predicted

_PROMOTED = Setting(replace(WORLD, days=12), promoted=1.0)
_TASKS = {
    "click": {},
    "watch": {"loss": "squared", "after": "click", "weight": 0.1},
    "like": {"after": "click", "weight": 0.3},
}


def measure(seed: int, report: Report) -> Mapping[str, float]:  # noqa: ARG001
    """The agreement of each way with the truth."""
    learnt, rest = parts(seed, _PROMOTED)
    figures = {}
    for how in ("shallow", "ignore", "feature"):
        options = {"engagement": ("click",), "position": {"how": how}}
        way = Way("youtube_multitask", _TASKS, options)
        trainer = teach(learner(way, seed), learnt)
        held = asked(rest, trainer)
        found = predicted(trainer, held.pairs)["click"]
        figures[how] = agreement(found, held.relevance, held.requests)
    return figures


CLAIMS = (
    Claim(
        "over_none",
        "with the tower, clicks rank nearer to relevance than without",
        measure, "shallow", "ignore", seeds=FRESH,
),
    Claim(
        "feature",
        "and no worse than with the position as a feature",
        measure, "shallow", "feature", margin=0.01, reproduces=False, seeds=FRESH,
),
)  # fmt: skip
