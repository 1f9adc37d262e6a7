"""Fusion: the order by several tasks, tuned for what they are worth, earns more than that by one.

Weighted sums and products of what tasks expect are common practice, with weights found by hand or
by Bayesian optimisation; Zhao et al., *Recommending What Video to Watch Next: A Multitask Ranking
System*, RecSys 2019, is an example of the first. What is claimed: where several tasks count, no
order by one of them is best; weights that are searched for come out above each; and between two
tasks there is a curve, on which little of one is given for much of the other.

Here: a planted world in which what allures is not what is good, so that clicks and purchases are
of different items. A click is worth 1, a purchase 6: either brings about half of the value. Weights
are tuned as `headrace fusion tune` does, by what came of the requests of a fifth of the stream; the
last fifth says what orders are worth in truth, by what was to be expected and not by what happened
to happen. The tasks are predicted by the truth itself, which tells fusion apart from the ranker,
and by MMoE, which has learnt the first three fifths.

With MMoE what is tuned earns more than its clicks, by half as much as with the truth, and no less
than its best single task, which is only known afterwards; but no more either: 0.0005 in the mean of
six seeds, -0.0008 to 0.0018. Its tasks differ less than those of the truth do.
Tried, before labels waited: worths of a purchase from 3 to 20, carts and watching as
further tasks, 20 and 30 days, other learning rates; 0.003 above the best at most.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pyarrow as pa
import torch

from benchmarks._claims import Claim, Report
from benchmarks._impressions import (
    WORLD,
    Asked,
    Impressions,
    Setting,
    asked,
    impressions,
    predicted,
    taught,
)
from features.shown import read_shown
from serving.fusion import Floats, FusionConfig, How, fused
from serving.fusion_tuning import Requests, tune
from serving.judged import Judged, judge
from streaming.samples import decode_samples
from streaming.sources.choice import ChoiceConfig
from trainers.trainer import Trainer, TrainerConfig

WORTH = {"click": 1.0, "buy": 6.0}
WAYS: tuple[How, ...] = ("sum", "product", "power")
_TASKS = {"click": {}, "buy": {"after": "click"}}
_ALLURING = ChoiceConfig(
    allure=1.0, quality=1.2, action=-0.5, buy_after_action=0.5, buy_at_once=-2.5
)
_CURVE = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)


def of_truth(seed: int, report: Report) -> Mapping[str, float]:
    """The objective of what is tuned and of each task `alone`, as the truth predicts them."""
    _, tuned_by, rest = _parts(_given(seed))
    unlearnt = Trainer(TrainerConfig(model="mmoe", options={"tasks": _TASKS}), "benchmark")
    judged = _judged(tuned_by)
    known = _true_of(judged, asked(tuned_by, unlearnt))
    last = asked(rest, unlearnt)
    figures = _measured(_true(last), known, judged, last, report)
    curves = {how: _curve(how, _true(last), last, report) for how in WAYS}
    return {**figures, **{f"{how}_kept": kept for how, kept in curves.items()}, "switched": 1.0}


def of_mmoe(seed: int, report: Report) -> Mapping[str, float]:
    """The same as MMoE predicts them."""
    learnt, tuned_by, rest = _parts(_given(seed))
    trainer = taught("mmoe", {"tasks": _TASKS}, learnt, seed, dense_learning_rate=0.002)
    judged, last = _judged(tuned_by), asked(rest, trainer)
    before = trainer.family.describe(read_shown(judged.rows, list(WORTH))).pairs
    tasks, known = (_doubles(predicted(trainer, pairs)) for pairs in (last.pairs, before))
    return _measured(tasks, known, judged, last, report)


def _given(seed: int) -> Impressions:
    torch.set_num_threads(1)
    return impressions(seed, Setting(replace(WORLD, choice=_ALLURING)))


def _parts(given: Impressions) -> tuple[Impressions, Impressions, Impressions]:
    learnt, others = given.split(0.6)
    return learnt, *others.split(0.5)


def _judged(given: Impressions) -> Judged:
    return judge(pa.concat_batches([decode_samples(one) for one in given.records]), WORTH)


def _measured(
    tasks: Mapping[str, Floats],
    known: Mapping[str, Floats],
    judged: Judged,
    last: Asked,
    report: Report,
) -> dict[str, float]:
    true = _true(last)
    truly = Requests(
        np.asarray(sum(WORTH[name] * true[name] for name in WORTH)), last.requests, _ones(last)
    )
    figures = {name: truly.gains(made).share for name, made in tasks.items()}
    figures["alone"] = max(figures.values())
    figures["shown"] = truly.gains(-last.places.astype(np.float64)).share
    by = Requests(judged.values, judged.groups, judged.weights)
    for how in WAYS:
        found = tune(known, by, how, trials=150).fusion
        figures[how] = truly.gains(fused(tasks, found)).share
        report(f"    {how} of {dict(found.weights)} {dict(found.powers) or ''}")
    return figures


def _curve(how: How, tasks: Mapping[str, Floats], last: Asked, report: Report) -> float:
    """From clicks alone to purchases alone: the most that is kept of both leads at once, where to
    switch between the two orders keeps 1.
    """
    requests = [Requests(made, last.requests, _ones(last)) for made in _true(last).values()]
    points = []
    for buy in _CURVE:
        scores = fused(tasks, _weighed(how, tasks, {"click": 1.0 - buy, "buy": buy}))
        points.append([one.gains(scores).share for one in requests])
    report(
        f"    {how}, of clicks and purchases: " + ", ".join(f"{a:.3f} {b:.3f}" for a, b in points)
    )
    (most, low), (least, high) = points[0], points[-1]
    return max((a - least) / (most - least) + (b - low) / (high - low) for a, b in points[1:-1])


def _weighed(how: How, tasks: Mapping[str, Floats], parts: Mapping[str, float]) -> FusionConfig:
    """In a sum these are parts of what tasks bring on average."""
    powers = dict.fromkeys(parts, 0.5) if how == "power" else {}
    sizes = {name: float((tasks[name] ** powers.get(name, 1.0)).mean()) for name in parts}
    weights = {n: part if how == "product" else part / sizes[n] for n, part in parts.items()}
    return FusionConfig(how, weights, powers)


def _true(pairs: Asked) -> dict[str, Floats]:
    return {"click": pairs.relevance, "buy": pairs.relevance * pairs.converts}


def _true_of(judged: Judged, pairs: Asked) -> dict[str, Floats]:
    """The truth of the items that were judged, which were all asked about."""
    items = pairs.pairs.items.ids.tolist()
    place = {one: n for n, one in enumerate(zip(pairs.requests.tolist(), items, strict=True))}
    wanted = zip(judged.groups.tolist(), judged.rows["item_id"].to_pylist(), strict=True)
    places = np.array([place[one] for one in wanted])
    return {name: made[places] for name, made in _true(pairs).items()}


def _ones(pairs: Asked) -> Floats:
    return np.ones(len(pairs.requests))


def _doubles(predictions: Mapping[str, np.ndarray]) -> dict[str, Floats]:
    return {name: made.astype(np.float64) for name, made in predictions.items()}


_SEEDS = (11, 12, 13, 14, 15, 16)
CLAIMS = (
    Claim(
        "sum", "the tuned sum earns more than any task alone",
        of_truth, "sum", "alone", seeds=_SEEDS,
    ),
    Claim("product", "so does the tuned product", of_truth, "product", "alone", seeds=_SEEDS),
    Claim("power", "so does the tuned sum of powers", of_truth, "power", "alone", seeds=_SEEDS),
    Claim(
        "sum_kept", "a sum keeps more of both tasks than to switch between them",
        of_truth, "sum_kept", "switched", seeds=_SEEDS,
    ),
    Claim(
        "product_kept", "so does a product",
        of_truth, "product_kept", "switched", seeds=_SEEDS,
    ),
    Claim(
        "mmoe_click", "the tuned sum of MMoE's tasks earns more than its clicks alone",
        of_mmoe, "sum", "click", seeds=_SEEDS,
    ),
    Claim(
        "mmoe_alone", "and no less than the best of them, which is only known afterwards",
        of_mmoe, "sum", "alone", margin=0.005, seeds=_SEEDS,
    ),
)  # fmt: skip
