"""One table of all ranking systems: how well they tell what comes of what is shown.

One stream of impressions of the planted world (`benchmarks._impressions`), of which a fifth of what
came to nothing is kept. Every registered ranker learns clicks, and carts and purchases after them,
by the common trainer in its default size; each micro-batch of 256 is predicted before it is
learnt. MMoE learns it also with each way to deal with positions, as `mmoe+NAME`; `pal` says what
comes of an item that is noticed, so that what came of all is no measure of it. `mmoe+coec` reads
how items do where they are shown besides.

- `auc`, `gauc` (of requests), `normalised_entropy` and `calibration` of each task, from the first
  sample on, as the trainer tells them;
- `relevance`: the last tenth of the stream is not learnt; of its pairs in one request, the share in
  the order of the true probability that they are clicked on once they are seen. Half is chance;
- `samples_per_s`: the time of testing and learning, on one thread; `us_per_candidate`: that of what
  is expected of 500 items for one user, the median of some such questions, of each.

A run adds what it has found to the results at once, so that one that was stopped goes on with the
others: `headrace bench ranking models='["mmoe"]'`. One with other settings than these adds nothing.
"""

from __future__ import annotations

import json
import math
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from pydantic import PositiveInt

from benchmarks import _impressions
from benchmarks._impressions import (
    FIELDS,
    ROWS,
    WORLD,
    Impressions,
    Setting,
    agreement,
    asked,
    predicted,
)
from benchmarks._plot import bar_plot
from benchmarks._streams import seeded
from features.shown import Pairs
from streaming.event_columns import NONE
from streaming.log import Record
from streaming.samples import decode_samples
from trainers import models
from trainers.item_response import COEC
from trainers.models.parts.position_bias import Hows
from trainers.trainer import Trainer, TrainerConfig

PICTURES = Path(__file__).parents[1] / "docs"
RESULTS = Path(__file__).parent / "results" / "ranking.json"
TASKS = {"click": {}, "cart": {"after": "click"}, "buy": {"after": "click"}}
FIGURES = ("auc", "gauc", "normalised_entropy", "calibration")
CANDIDATES = 500
# What models are told beside that, as in [trainer.options].
SETTINGS: Mapping[str, Mapping[str, Any]] = {
    "dupn": {
        "fields": [name for name in FIELDS if name != "history"],
        "described": ["category", "brand", "words"],
    },
    "youtube_multitask": {"engagement": ["click"]},
}
_SAMPLES_A_DAY = 5_000
_ASKED = 30

UNBOUNDED = float("inf")
PROMISES: dict[str, tuple[float, float]] = {
    "world.mmoe.calibration[click]": (0.8, 1.25),
    "world.mmoe.normalised_entropy[click]": (0.0, 1.0),
    "world.mmoe_esmm.auc[buy]": (0.75, 1.0),
    "world.esm2.relevance": (0.7, 1.0),
}


@dataclass(frozen=True)
class Config:
    """Without `models` all take part."""

    models: tuple[str, ...] = ()
    samples: PositiveInt = 200_000
    step_size: PositiveInt = 256
    seed: int = 1


def run(report: Callable[[str], None], config: Config | None = None) -> dict[str, float]:
    """`world.SYSTEM.FIGURE`; what was found is also kept in `results/ranking.json`."""
    torch.set_num_threads(1)
    config = config or Config()
    given = stream(config)
    learnt, last = given.split(0.9)
    report(f"{_size(given):,} samples, of which {_size(last):,} are not learnt")
    figures: dict[str, float] = {}
    for name in config.models or everyone():
        row = test(name, learnt, last, config)
        shown = ("auc[click]", "gauc[click]", "auc[buy]", "relevance", "samples_per_s")
        report(f"  {name}: " + ", ".join(f"{key} {row.get(key, 0.0):,.4g}" for key in shown))
        figures |= {f"world.{name}.{key}": value for key, value in row.items()}
        if replace(config, models=()) == Config():
            keep(name, row)
    return figures


def test(name: str, learnt: Impressions, last: Impressions, config: Config) -> dict[str, float]:
    """What one system finds, and what it costs."""
    trainer = Trainer(trainer_of(name, config), "benchmark")
    begun = time.perf_counter()
    for record in learnt.records:
        trainer.on_batch([record])
    seconds = time.perf_counter() - begun
    found = trainer.metrics
    row = {f"{key}[{task}]": found.get(f"{key}[{task}]") for task in TASKS for key in FIGURES}
    question = asked(last, trainer)
    clicks = predicted(trainer, question.pairs)["click"]
    return {
        **{key: value for key, value in row.items() if value is not None},
        "relevance": agreement(clicks, question.relevance, question.requests),
        "samples_per_s": trainer.samples / seconds,
        "us_per_candidate": _us_per_candidate(trainer, question.pairs),
    }


def trainer_of(name: str, config: Config) -> TrainerConfig:
    """How a system is trained: that of a registered model, or one that wears something."""
    model, _, worn = name.partition("+")
    options = {"tasks": TASKS, "fields": list(FIELDS), "table": ROWS, **SETTINGS.get(model, {})}
    if worn == COEC:
        options["fields"] = [*options["fields"], COEC]
    elif worn:
        options["position"] = {"how": worn}
    made = TrainerConfig(model=model, options=options, dense_learning_rate=0.002)
    return seeded(made, config.seed)


def stream(config: Config) -> Impressions:
    """At least so many samples, if the world is as busy as it should be; none beyond these."""
    days = math.ceil(config.samples / _SAMPLES_A_DAY) + 4  # purchases are waited for
    setting = Setting(replace(WORLD, days=days), keep_negatives=0.2, step_size=config.step_size)
    given = _impressions.impressions(config.seed, setting)
    sizes = np.cumsum([_rows(record) for record in given.records])
    end = int(np.searchsorted(sizes, config.samples)) + 1
    return replace(given, records=given.records[:end])


def everyone() -> list[str]:
    """All that take part, by name."""
    ways = [how for how in get_args(Hows) if how != "ignore"]
    return [*rankers(), *(f"mmoe+{worn}" for worn in (COEC, *ways))]


def rankers() -> list[str]:
    """The registered rankers that are ours, and no variants that a claim registers."""
    ours = [one for one in models.names() if models.about(one).origin.startswith(models.__name__)]
    return [name for name in ours if models.family_of(name) == models.RANKING]


def keep(name: str, row: Mapping[str, float]) -> None:
    """Adds a system to what was found before, and draws all that are there."""
    RESULTS.parent.mkdir(exist_ok=True)
    table = json.loads(RESULTS.read_text()) if RESULTS.exists() else {"world": {}}
    table["world"][name] = dict(row)
    RESULTS.write_text(json.dumps(table, indent=1) + "\n")
    drawn = {
        task: {one: found[f"gauc[{task}]"] - 0.5 for one, found in table["world"].items()}
        for task in ("click", "buy")
    }
    bar_plot(PICTURES / "ranking.svg", "GAUC above chance, test then train", drawn)


def _us_per_candidate(trainer: Trainer, pairs: Pairs) -> float:
    """The median time of a question for one user, by each of its candidates."""
    ids = np.resize(np.unique(pairs.items.ids), CANDIDATES)
    items = trainer.family.book.items(ids)
    nobody, nowhere = np.zeros(CANDIDATES, np.int64), np.full(CANDIDATES, NONE, np.int32)
    model, seconds = trainer.model.eval(), []
    with torch.inference_mode():
        for number in range(_ASKED + 3):
            user = pairs.users.take(np.array([number]))
            question = Pairs(user, nobody, items, nowhere)
            begun = time.perf_counter()
            model.predict(question)
            seconds.append(time.perf_counter() - begun)
    return 1e6 * statistics.median(seconds[3:]) / CANDIDATES  # the first load what they need


def _size(given: Impressions) -> int:
    return sum(map(_rows, given.records))


def _rows(record: Record) -> int:
    """The samples of a micro-batch, without the items that it declares."""
    users = decode_samples(record)["user_id"]
    return int(len(users) - users.null_count)
