"""DUPN: what several tasks taught of users helps one that was not there, and is computed once.

Ni et al. (KDD 2018, section 5.4) learn user representations by four tasks of Taobao, and then a
fifth over them: better than alone, and sooner.

Here: the planted world. A ranker learns clicks, watching and likes of its first half; then another
begins with its tables and with what makes the vector of a user, and learns carts - a task that was
not there - from the fewer impressions that follow. Alone it learns the same from nothing. The AUC
of an action once clicked, over all that was shown in the last fifth, by the world's own
probabilities; and that of clicking and then doing so.

Of clicking and then doing so it finds more on all of eight seeds. Of who acts once clicked it is
ahead by .024, but seeds differ (-.008 to .055). A vector is worth nothing until a new network has
learnt to read it. With half the days, steps of 512 and dense parameters that
learn at .002 it has 58 steps to do so, and not 485, and of who acts once clicked finds no more than
alone (-.009, -.054 to .035 of three seeds); nor with all the days in steps of 512 at .01 (.004,
-.022 to .030 of seeds 1 to 3). Of clicking and then doing so it finds more in either.

A user's vector is computed once however many items he is shown: `split` is the largest difference
that this makes to a prediction, as a figure of which more is better, against none at all.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from benchmarks._auc import auc
from benchmarks._claims import Claim, Report
from benchmarks._conversions import RARE, teach
from benchmarks._impressions import FIELDS, Asked, Setting, asked, impressions, predicted
from benchmarks._streams import seeded
from features.shown import Pairs
from trainers.trainer import Trainer, TrainerConfig

_SETTING = Setting(replace(RARE.world, days=24), step_size=128)
_OPTIONS = {
    "fields": FIELDS,
    "described": ("category", "brand"),
    "table": {"optimiser": {"learning_rate": 0.1}},
}
_BEFORE = {
    "tasks": {
        "click": {},
        "watch": {"loss": "squared", "after": "click"},
        "like": {"after": "click"},
    }
}
_UNSEEN = {"tasks": {"click": {}, "cart": {"after": "click", "weight": 10.0}}, "space": "entire"}
_OF_TASKS = ("networks", "towers", "position", "balance")


def measure(seed: int, report: Report) -> Mapping[str, float]:  # noqa: ARG001
    """The AUC of the unseen task, each way; and what is not the same if computed once."""
    given = impressions(seed, _SETTING)
    half, others = given.split(0.5)
    few, _ = others.split(0.3)
    _, rest = given.split(0.8)
    taught = teach(_learner(_BEFORE, seed), half)
    figures = {}
    for name in ("transferred", "alone"):
        trainer = _learner(_UNSEEN, seed)
        if name == "transferred":
            _hand_over(taught, trainer)
        teach(trainer, few)
        held = asked(rest, trainer)
        found = predicted(trainer, held.pairs)
        figures[name] = auc(found["cart"] / np.maximum(found["click"], 1e-7), held.acts)
        figures[f"{name}_all"] = auc(found["cart"], held.relevance * held.acts)
    return {**figures, "split": -_apart(trainer, held), "whole": 0.0}


def _learner(options: Mapping[str, Any], seed: int) -> Trainer:
    given = {**_OPTIONS, **options}
    config = TrainerConfig(model="dupn", options=given, dense_learning_rate=0.005)
    return Trainer(seeded(config, seed), "benchmark")


def _hand_over(taught: Trainer, trainer: Trainer) -> None:
    """Gives what is known of users and items to the ranker of another task."""
    for name, table in taught.tables.items():
        trainer.tables[name].upsert(*table.touched_since(0))
    known = taught.model.state_dict()
    shared = {key: known[key] for key in known if not key.startswith(_OF_TASKS)}
    trainer.model.load_state_dict(shared, strict=False)


def _apart(trainer: Trainer, held: Asked) -> float:
    """The largest difference of a prediction, of lists of a user and of each pair alone."""
    rows = np.arange(200)
    users = held.pairs.users.take(np.zeros(200, np.int64))
    items = held.pairs.items.take(rows)
    whole = Pairs(users, rows, items, held.pairs.positions[:200])
    once = replace(whole, users=users.take(rows[:1]), user_of=np.zeros(200, np.int64))
    found, same = predicted(trainer, whole), predicted(trainer, once)
    return max(float(np.abs(found[task] - same[task]).max()) for task in found)


_SEEDS = tuple(range(11, 19))
CLAIMS = (
    Claim(
        "transfer",
        "what other tasks taught of users makes an unseen task better than alone",
        measure, "transferred", "alone", seeds=_SEEDS, reproduces=False,
),
    Claim(
        "transfer_all",
        "and so who takes that action, of all who are shown something",
        measure, "transferred_all", "alone_all", seeds=_SEEDS,
),
    Claim(
        "split",
        "a user computed once gives what computing him for each item gives",
        measure, "split", "whole", margin=1e-5, seeds=_SEEDS,
),
)  # fmt: skip
