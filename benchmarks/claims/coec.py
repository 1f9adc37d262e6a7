"""COEC: clicks over those that the places alone promise tell more of an item than its click rate.

Zhang and Jones, *Comparing Click Logs and Editorial Labels for Training Query Rewriting*, WWW 2007:
an item that stood at the top is clicked on for that.

`world`: items of the planted world in the order of COEC and of their click rates, against their
true mean relevance to those who were shown them, where a policy puts items in an order of their
own. Both with so much of a prior as is best for them.

`feature`: MMoE with one task and a shallow tower for positions, with COEC among its fields and
without, in such a world whose items live for four days: how well what is served ranks by the true
relevance within lists that were not learnt, and GAUC as each list was tested before it was learnt.
What an item's own row has yet to learn its COEC tells. So it gains where rows learn slowly, as in
the recipe; where they learn fast (`feature_fast`) both are better, and it gains nothing more.

`trivago`: the hotels of one half of the lists, at random, are scored; of the other half are asked
pairs of neighbours of which one was clicked on, those where it is the upper one counting as much as
those where it is the lower one, so that knowing the place is of no use. It does not reproduce: a
hotel is shown three times, of which neither tells much, and its usual place is the site's own
judgement of it, which COEC takes off. Priors of 0.5 to 8 clicks were tried. With three halves drawn
otherwise it once held, by .0023; of ten it is .0003, for which half is learnt matters more.

`open_bandit`: items are scored by one half, against the clicks on the other half as far as it was
shown uniformly at random, by AUC. There is nothing to correct: places were drawn, all three are
clicked on alike (0.48%, 0.52%, 0.44%), and 287 clicks on 160 items are few: neither is surely
better than chance. So COEC is only not to be worse.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np

from benchmarks._auc import auc
from benchmarks._claims import FRESH, Claim, Report
from benchmarks._impressions import (
    FIELDS,
    ROWS,
    WORLD,
    Setting,
    agreement,
    asked,
    impressions,
    once,
    predicted,
    taught,
    true,
)
from benchmarks._logs import SEEDS, Log, Neighbours, log
from features.coec import Coec, CoecConfig, CountedBaseline, CountedConfig, Shown
from streaming.event_columns import NONE, scenario_codes
from streaming.sources.chance import Floats, Ints
from trainers.item_response import COEC

_SETTING = Setting(replace(WORLD, days=12), promoted=1.0)
_YOUNG = replace(
    _SETTING.world,
    population=replace(_SETTING.world.population, items=600, item_life_days=4),
)
_SLOW = {"optimiser": {"learning_rate": 0.1}}
_STRENGTHS = (0.5, 2.0, 8.0)  # expected clicks of the prior


def world(seed: int, report: Report) -> Mapping[str, float]:
    """How well each orders the items by their true relevance."""
    given = impressions(seed, _SETTING)
    rows = once(given)
    ids, items = np.unique(rows["item_id"].to_numpy(), return_inverse=True)
    names, where = np.unique(rows["scenario"].to_numpy(zero_copy_only=False), return_inverse=True)
    clicked = rows["label_click"].to_numpy().astype(np.float64)
    context = scenario_codes(names.tolist())[where].astype(np.int64)
    shown = _shown(items, rows["position"].to_numpy(), clicked, context)
    relevance = np.bincount(items, true(given, rows).relevance) / np.bincount(items)
    one = np.zeros(len(ids), np.int64)
    return _best(shown, len(ids), lambda scores: agreement(scores, relevance, one), report)


def feature(seed: int, report: Report) -> Mapping[str, float]:  # noqa: ARG001
    """The agreement with the truth, and GAUC, of a ranker with the field and of one without."""
    given = impressions(seed, Setting(_YOUNG, promoted=1.0))
    first, rest = given.split()
    found: dict[str, float] = {}
    for pace, rows in (("slow", _SLOW), ("fast", ROWS)):
        for name, fields in (("with", (*FIELDS, COEC)), ("without", FIELDS)):
            options = {"tasks": {"click": {}}, "position": {"how": "shallow"}, "fields": fields}
            trainer = taught(
                "mmoe", {**options, "table": rows}, first, seed, dense_learning_rate=0.005
            )
            held = asked(rest, trainer)
            made = predicted(trainer, held.pairs)["click"]
            found[f"{pace}_{name}"] = agreement(made, held.relevance, held.requests)
            found[f"{pace}_{name}_gauc"] = trainer.metrics["gauc[click]"]
    return found


def trivago(seed: int, report: Report) -> Mapping[str, float]:
    """Of how many pairs of neighbours the one that was clicked on is first."""
    given = log("trivago")
    learnt, rest = given.halves(seed)
    asked = Neighbours.of(rest, learnt)

    def quality(scores: Floats) -> float:
        return asked.found(scores[rest.items])

    return _best(_shown_of(learnt), int(given.items.max()) + 1, quality, report)


def bandit(seed: int, report: Report) -> Mapping[str, float]:
    """The AUC of the scores of items for clicks on what was shown uniformly at random."""
    given = log("open-bandit")
    learnt, rest = given.halves(seed)
    rest = rest.where(rest.randomised)

    def quality(scores: Floats) -> float:
        return auc(scores[rest.items], rest.clicked)

    return _best(_shown_of(learnt), int(given.items.max()) + 1, quality, report)


def _best(
    shown: Shown, items: int, quality: Callable[[Floats], float], report: Report
) -> dict[str, float]:
    """Of COEC and of click rates the quality of the scores (items,), with the best prior."""
    every = np.arange(items)
    clicks = np.bincount(shown.item_id, shown.clicked, items)
    count = np.bincount(shown.item_id, minlength=items)
    rate = shown.clicked.mean()
    found: dict[str, float] = {}
    for strength in _STRENGTHS:
        coec = Coec("items", CoecConfig(strength=strength), CountedBaseline("all", CountedConfig()))
        coec.update(shown)
        for name, scores in (
            ("coec", coec.get(every, 0)),
            ("rate", (clicks + strength) / (count + strength / rate)),
        ):
            made = quality(scores)
            report(f"    {name}, strength {strength:g}: {made:.4f}")
            found[name] = max(found.get(name, 0.0), made)
    return found


def _shown(items: Ints, places: Ints, clicked: Floats, context: Ints | None = None) -> Shown:
    nothing = np.zeros(len(items), np.int64)
    context = np.full(len(items), NONE) if context is None else context
    return Shown(items, places.astype(np.int64), clicked, nothing, context, nothing > 0)


def _shown_of(learnt: Log) -> Shown:
    return _shown(learnt.items, learnt.places, learnt.clicked)


CLAIMS = (
    Claim(
        "world",
        "COEC orders items nearer to their true relevance than click rates do",
        world,
        ours="coec",
        baseline="rate",
        seeds=FRESH,
    ),
    Claim(
        "feature",
        "with COEC as a field a ranker orders items that are young nearer to their relevance",
        feature,
        ours="slow_with",
        baseline="slow_without",
        seeds=FRESH,
    ),
    Claim(
        "feature_gauc",
        "and tells better beforehand which of a list are clicked on",
        feature,
        ours="slow_with_gauc",
        baseline="slow_without_gauc",
        seeds=FRESH,
    ),
    Claim(
        "feature_fast",
        "and also where rows learn fast",
        feature,
        ours="fast_with",
        baseline="fast_without",
        reproduces=False,
        seeds=FRESH,
    ),
    Claim(
        "trivago",
        "of two neighbours in a list COEC knows better than click rates which is clicked on",
        trivago,
        ours="coec",
        baseline="rate",
        reproduces=False,
        seeds=SEEDS,
    ),
    Claim(
        "open_bandit",
        "where places were drawn at random, COEC of items is no worse than their click rates",
        bandit,
        ours="coec",
        baseline="rate",
        margin=0.01,
        seeds=SEEDS,
    ),
)
