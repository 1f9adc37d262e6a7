"""One table of all retrieval systems: what they find of what comes next, while they learn.

The first 100,000 events of MovieLens-1M and of Diginetica's shop sessions, in time order. Before
each micro-batch of 256 samples is learnt, every system ranks all items known by then for the users
in it who took something they liked (Diginetica: who clicked), with their histories as of then; of
MovieLens the items of the history are left out, of which nobody rates one again. A part of the
samples is asked for, the same for all.

- every registered model, by the common trainer with the settings of the recipe `movielens`, in its
  default size, but where `OPTIONS` and `SETTINGS` say otherwise. These were chosen by a few runs
  on the first 60,000 of these events, which are asked for too; nothing below was chosen so;
- `popular`: what was taken most lately; `item_knn`: items taken together, learnt with each action;
- `als` and `bpr` of implicit, fitted anew every day on all samples so far; `recbole_sasrec`, fitted
  anew every week on the newest 20,000 and histories of 20, two epochs: less than it is used to.
  They are fitted once 5,000 samples are new, and find nothing before; they know of every action of
  a user at once, but of items as of the last fit. Left out where they are not installed (`make
  peers`).

A click of Diginetica is worth as much as a like: there is nothing stronger. `samples_per_s` is the
time of learning alone, on one thread. The clock of Diginetica is invented: a period is a week.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from pydantic import NonNegativeInt, PositiveFloat, PositiveInt

from benchmarks._libraries import LIBRARIES
from benchmarks._plot import bar_plot
from benchmarks._rankers import ItemKNN, Popular, Refitted
from benchmarks._streams import (
    DATA,
    Learner,
    Ranker,
    Stream,
    Tested,
    join,
    progressive,
    seeded,
)
from infra.recipe import load_recipe
from streaming.sources.registry import open_source
from trainers import models

PICTURES = Path(__file__).parents[1] / "docs"
RESULTS = Path(__file__).parent / "results" / "retrieval.json"
DAY_US = 86_400_000_000
_REFITTED_AFTER = 5_000  # samples, at least: the last two years of MovieLens are thin
OTHERS = ("popular", "item_knn", *LIBRARIES)
# What is worth more there than in the recipe, which knows stronger signs than clicks.
REWARDS: Mapping[str, Mapping[str, float]] = {"diginetica": {"click": 1.0}}


def _rows(learning_rate: float) -> dict[str, Any]:
    """How the rows of a model learn."""
    return {"table": {"optimiser": {"learning_rate": learning_rate, "first_square": 0.001}}}


# What models are told beside the recipe, as in [trainer.options]. A short history says more than a
# long one, and transformers, which see each sample once here, want smaller steps.
OPTIONS: Mapping[str, Any] = _rows(0.2)
SETTINGS: Mapping[str, Mapping[str, Any]] = {
    "atrank": _rows(0.05),
    "bert4rec": {"layers": 1, "history": 20, **_rows(0.1)},
    "mind": {"history": 10},
    "sasrec": _rows(0.1),
    "sdm": {"history": 10},
    "ssl_two_tower": {"history": 5},
    "transrec": _rows(0.05),
    "two_tower": {"history": 5},
}
DENSE_LEARNING_RATES: Mapping[str, float] = {"bert4rec": 0.0003, "sasrec": 0.0003}

UNBOUNDED = float("inf")
PROMISES: dict[str, tuple[float, float]] = {
    "ml-1m.two_tower.recall@50_over_popular": (2.0, UNBOUNDED),
    "ml-1m.best.recall@50_over_item_knn": (1.3, UNBOUNDED),
    "ml-1m.best.recall@50_over_als": (1.3, UNBOUNDED),
    "diginetica.two_tower.recall@50_over_popular": (5.0, UNBOUNDED),
    "diginetica.best.recall@50_over_item_knn": (1.3, UNBOUNDED),
    "diginetica.best.recall@50_over_als": (2.0, UNBOUNDED),
}


@dataclass(frozen=True)
class Config:
    """Of each source the first `events`, 0 for all, which takes hours; of the samples `share` are
    asked for. Without `models` all take part.
    """

    models: tuple[str, ...] = ()
    sources: tuple[str, ...] = ("ml-1m", "diginetica")
    events: NonNegativeInt = 100_000
    share: PositiveFloat = 0.1
    step_size: PositiveInt = 256
    seed: int = 1
    options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # of models, by name


def run(report: Callable[[str], None], config: Config | None = None) -> dict[str, float]:
    """`SOURCE.SYSTEM.FIGURE`; the whole run is also written to `results/retrieval.json`."""
    torch.set_num_threads(1)
    whole, config = config is None, config or Config()
    figures: dict[str, float] = {}
    table: dict[str, dict[str, dict[str, float]]] = {}
    for source in config.sources:
        given = stream_of(source, config)
        report(f"{source}: {len(given):,} samples")
        for name in config.models or everyone():
            if (tested := test(name, given, config)) is None:
                report(f"  {name} is not installed: `make peers`")
                continue
            row = {**tested.figures((10, 50)), "samples_per_s": tested.samples_per_s}
            row = {figure: row[figure] for figure in ("recall@50", "ndcg@10", "samples_per_s")}
            report(f"  {name}: " + ", ".join(f"{key} {value:,.4g}" for key, value in row.items()))
            table.setdefault(source, {})[name] = row
            figures |= {f"{source}.{name}.{key}": value for key, value in row.items()}
    for source, rows in table.items():
        figures |= {f"{source}.{key}": value for key, value in compared(rows).items()}
    if whole:
        keep(table)
    return figures


def compared(rows: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """How often systems find what comes next for once that others do: each over `popular`, and
    the best of the registered models over each of the others.
    """
    recall = {name: row["recall@50"] for name, row in rows.items()}
    ours = [found for name, found in recall.items() if name not in OTHERS]
    pairs = [(name, found, "popular") for name, found in recall.items() if name != "popular"]
    pairs += [("best", max(ours), other) for other in OTHERS if ours]
    return {
        f"{name}.recall@50_over_{other}": found / recall[other]
        for name, found, other in pairs
        if recall.get(other)
    }


def keep(table: Mapping[str, Mapping[str, Mapping[str, float]]]) -> None:
    """Writes down what a whole run has found, and draws it."""
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(table, indent=1) + "\n")
    found = {
        source: {name: row["recall@50"] for name, row in rows.items()}
        for source, rows in table.items()
    }
    bar_plot(PICTURES / "retrieval.svg", "recall@50 of what comes next", found)


def stream_of(source: str, config: Config) -> Stream:
    """The steps of a source, and what all are asked about it.

    Raises:
        SourceError: its files are not there; set HEADRACE_DATA.
    """
    data = replace(DATA[source], rewards=REWARDS.get(source, {}))
    found = join(
        open_source(source), data, events=config.events or None, step_size=config.step_size
    )
    return Stream(source, data, found)


def everyone() -> list[str]:
    """All that take part, by name."""
    return [*OTHERS, *retrievers()]


def retrievers() -> list[str]:
    """The registered models that put users and items into one space."""
    return [name for name in models.names() if is_retriever(name)]


def is_retriever(name: str) -> bool:
    """Whether it is one of ours, and no variant that a claim registers."""
    return models.about(name).origin.startswith(models.__name__) and hasattr(
        models.find(name, {})[0], "query"
    )


def test(name: str, given: Stream, config: Config) -> Tested | None:
    """What one of them finds in a stream; None where its library is not installed."""
    try:
        return progressive(given, ranker(name, config), share=config.share)
    except ModuleNotFoundError:
        if name not in LIBRARIES:
            raise
        return None


def ranker(name: str, config: Config) -> Ranker:
    """One of `everyone`, before it has learnt anything."""
    if name == "popular":
        return Popular()
    if name == "item_knn":
        return ItemKNN()
    if name in LIBRARIES:
        fit, days = LIBRARIES[name]
        return Refitted(fit, days * DAY_US, _REFITTED_AFTER)
    recipe = load_recipe("movielens").trainer
    options = {**OPTIONS, **SETTINGS.get(name, {}), **config.options.get(name, {})}
    rate = DENSE_LEARNING_RATES.get(name, recipe.dense_learning_rate)
    told = replace(recipe, model=name, options=options, dense_learning_rate=rate)
    return Learner(seeded(told, config.seed))
