"""One table of all retrieval systems: what they find of what comes next, while they learn.

The first 300,000 events of MovieLens-1M and of Diginetica's shop sessions, in time order. Before
each micro-batch of 256 samples is learnt, every system ranks all items known by then for the users
in it who took something they liked (Diginetica: who clicked), with their histories as of then; of
MovieLens the items of the history are left out, of which nobody rates one again. A part of the
samples is asked for, the same for all.

- every registered model, by the common trainer with the settings of the recipe `movielens`, in its
  default size but where `SETTINGS` says otherwise;
- `popular`: what was taken most lately; `item_knn`: items taken together, learnt with each action;
- `als` and `bpr` of implicit, fitted anew every day on all samples so far; `recbole_sasrec`, fitted
  anew every week on the newest 50,000, two epochs: more would take days. They know of every
  action of a user at once, and of items as of the last fit. Left out where they are not installed
  (`make peers`).

`samples_per_s` is the time of learning alone, on one thread. The clock of Diginetica is invented: a
period is a week.
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
from benchmarks._streams import Learner, Ranker, Stream, Tested, progressive, seeded, stream
from infra.recipe import load_recipe
from trainers import models

PICTURES = Path(__file__).parents[1] / "docs"
RESULTS = Path(__file__).parent / "results" / "retrieval.json"
DAY_US = 86_400_000_000
_REFITTED_AFTER = 5_000  # samples, at least: the last two years of MovieLens are thin
# What a model needs to be told beside the recipe, as a recipe would in [trainer.options].
SETTINGS: Mapping[str, Mapping[str, Any]] = {}

UNBOUNDED = float("inf")
PROMISES: dict[str, tuple[float, float]] = {
    "ml-1m.two_tower.recall@50_over_popular": (1.5, UNBOUNDED),
}


@dataclass(frozen=True)
class Config:
    """Of each source the first `events`, 0 for all, which takes a day; of the samples `share` are
    asked for. Without `models` all take part.
    """

    models: tuple[str, ...] = ()
    sources: tuple[str, ...] = ("ml-1m", "diginetica")
    events: NonNegativeInt = 300_000
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
        given = stream(source, config.events or None, config.step_size)
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
        for name in rows.keys() - {"popular"} if "popular" in rows else ():
            over = rows[name]["recall@50"] / rows["popular"]["recall@50"]
            figures[f"{source}.{name}.recall@50_over_popular"] = over
    if whole:
        RESULTS.parent.mkdir(exist_ok=True)
        RESULTS.write_text(json.dumps(table, indent=1) + "\n")
        found = {
            source: {name: row["recall@50"] for name, row in rows.items()}
            for source, rows in table.items()
        }
        bar_plot(
            PICTURES / "retrieval.svg", "recall@50 of what comes next, learnt in one pass", found
        )
    return figures


def everyone() -> list[str]:
    """All that take part, by name."""
    return ["popular", "item_knn", *LIBRARIES, *retrievers()]


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
    shipped = recipe.options if name == recipe.model else {}
    options = {**shipped, **SETTINGS.get(name, {}), **config.options.get(name, {})}
    return Learner(seeded(replace(recipe, model=name, options=options), config.seed))
