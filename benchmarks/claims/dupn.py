"""DUPN: what several tasks taught of users helps one that was not there, and is computed once.

Ni et al. (KDD 2018, section 5.4) learn user representations by four tasks of Taobao, and then a
fifth over them: better than alone, and sooner.

Here: the planted world. A ranker learns clicks, watching and likes of its first half; then another
begins with its tables and with what makes the vector of a user, and learns carts - a task that was
not there - from the fewer impressions that follow. Alone it learns the same from nothing. The AUC
of an action once clicked, over all that was shown in the last fifth, by the world's own
probabilities; and that of clicking and then doing so.

A user's vector is computed once however many items he is shown: `split` is the largest difference
that this makes to a prediction, as a figure of which more is better, against none at all.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from benchmarks._auc import auc
from benchmarks._claims import FRESH, Claim, Report
from benchmarks._conversions import RARE, Way, learner, teach
from benchmarks._impressions import FIELDS, Asked, asked, impressions, predicted
from features.shown import Pairs
from trainers.trainer import Trainer

_OPTIONS = {"fields": FIELDS, "described": ("category", "brand")}
_BEFORE = Way(
    "dupn",
    {"click": {}, "watch": {"loss": "squared", "after": "click"}, "like": {"after": "click"}},
    _OPTIONS,
)
_UNSEEN = Way(
    "dupn",
    {"click": {}, "cart": {"after": "click", "weight": 10.0}},
    {**_OPTIONS, "space": "entire"},
)
_OF_TASKS = ("networks", "towers", "position", "balance")


def measure(seed: int, report: Report) -> Mapping[str, float]:  # noqa: ARG001
    """The AUC of the unseen task, each way; and what is not the same if computed once."""
    given = impressions(seed, RARE)
    half, others = given.split(0.5)
    few, _ = others.split(0.3)
    _, rest = given.split(0.8)
    taught = teach(learner(_BEFORE, seed), half)
    figures = {}
    for name in ("transferred", "alone"):
        trainer = learner(_UNSEEN, seed)
        if name == "transferred":
            _hand_over(taught, trainer)
        teach(trainer, few)
        held = asked(rest, trainer)
        found = predicted(trainer, held.pairs)
        figures[name] = auc(found["cart"] / np.maximum(found["click"], 1e-7), held.acts)
        figures[f"{name}_all"] = auc(found["cart"], held.relevance * held.acts)
    return {**figures, "split": -_apart(trainer, held), "whole": 0.0}


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


CLAIMS = (
    Claim(
        "transfer",
        "what other tasks taught of users makes an unseen task better than alone",
        measure, "transferred", "alone", reproduces=False, seeds=FRESH,
),
    Claim(
        "transfer_all",
        "and so who takes that action, of all who are shown something",
        measure, "transferred_all", "alone_all", seeds=FRESH,
),
    Claim(
        "split",
        "a user computed once gives what computing him for each item gives",
        measure, "split", "whole", margin=1e-5, seeds=FRESH,
),
)  # fmt: skip
