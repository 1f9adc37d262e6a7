"""Weights of samples: clicks that were bought count more, and one model serves two ends.

The simplest of all ways to several goals: one task, whose positives are worth more where another
came of them. It is known in industry for what it gains of the one and costs of the other.

Here: MMoE with the one task click on the planted world, where what is clicked on is not what is
bought (`allure` and `quality` are correlated by -0.3). A purchase is another positive with a weight
(`also` of `trainers.tasks.Task`), and how well predictions rank is held against the truth, within
lists that were not learnt: by the probability of a click, and by that of a purchase, both once an
item is seen. Weights from 1 to 30 give the curve between the two.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from benchmarks._claims import FRESH, Claim, Report
from benchmarks._impressions import WORLD, Setting, agreement, asked, impressions, predicted, taught

_SETTING = Setting(replace(WORLD, days=12))
_WEIGHTS = (1.0, 3.0, 10.0, 30.0)


def measure(seed: int, report: Report) -> Mapping[str, float]:
    """The agreement with clicks, and with purchases, of each weight; 0 for no purchases."""
    first, rest = impressions(seed, _SETTING).split()
    made = {}
    for weight in (0.0, *_WEIGHTS):
        also = {"also": {"buy": weight}} if weight else {}
        options = {"tasks": {"click": also}}
        trainer = taught("mmoe", options, first, seed, dense_learning_rate=0.005)
        held = asked(rest, trainer)
        score = predicted(trainer, held.pairs)["click"]
        for name, truth in (
            ("clicks", held.relevance), ("buys", held.relevance * held.converts)
        ):  # fmt: skip
            made[f"{name} at {weight:g}"] = agreement(score, truth, held.requests)
        found = ", ".join(f"{made[f'{name} at {weight:g}']:.4f}" for name in ("clicks", "buys"))
        report(f"    a purchase counts {weight:g}: clicks and buys {found}")
    return made


_MORE = tuple(range(11, 19))  # a margin is told by more of them
CLAIMS = (
    Claim(
        "buys",
        "where a purchase counts as ten clicks, the order is nearer to what is bought",
        measure,
        ours="buys at 10",
        baseline="buys at 0",
        seeds=FRESH,
    ),
    Claim(
        "costs",
        "and it is further from what is clicked on: the more so, the more a purchase counts",
        measure,
        ours="clicks at 3",
        baseline="clicks at 30",
        seeds=FRESH,
    ),
    Claim(
        "little",
        "a weight of 1 gains something of purchases and costs next to nothing of clicks",
        measure,
        ours="clicks at 1",
        baseline="clicks at 0",
        margin=0.015,
        seeds=_MORE,
    ),
)
