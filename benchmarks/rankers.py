"""Rankers: how fast MMoE learns against others' MMoE, and how long an answer takes.

Training: four experts, three tasks, twenty fields of width 16, 1,024 samples a step, one thread;
`benchmarks/_peers/mmoe.py` has every contender's code. `mmoe` is what the trainer does with samples
that were read; its largest product is in bfloat16 where the machine is fast at it, `mmoe_fp32` has
none. `mmoe_trainer` is all that happens to encoded records, tests before training among it, which
no other does. `mmoe_torch` is the model as one writes it, with Adagrad for rows that were read and
with SparseAdam; `mmoe_rechub` Torch-RecHub's, with its own optimiser, Adam over all rows, and with
sparse gradients, which it has no setting for. Each runs in a process of its own, they take turns,
and every ratio is the median over the rounds of one run. A peer whose library is not installed
(`make peers`) is left out.

Serving: 500 items, described by as many fields, for one user with 50 actions, on one thread, by the
model alone. `split` is how many times as long it takes where what depends on the user alone is
computed for every pair.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np
import torch
from pydantic import PositiveFloat, PositiveInt

from benchmarks._peers import ask, median_ratio
from benchmarks._peers.mmoe import (
    DESCRIBED,
    EXPERT,
    EXPERTS,
    NAMES,
    OPTIONS,
    add_rows,
    described,
)
from features.batch import Details, Items, Jagged, Users
from features.shown import Pairs
from streaming.event_columns import NONE
from trainers.models import create

BATCH = 1024
PEERS = ("mmoe_torch", "mmoe_torch_adam", "mmoe_rechub", "mmoe_rechub_sparse")
CANDIDATES, ACTIONS, ITEMS = 500, 50, 20_000
FIELDS = ("user_id", "history", "scenario", "hour", "item_id", *NAMES[:15])
SERVED: Mapping[str, Mapping[str, Any]] = {
    "mmoe": {"experts": EXPERTS, "expert": EXPERT},
    "dupn": {"described": NAMES[:3]},
}
AT_US = 1_700_000_000_000_000
PROMISES = {
    "over_mmoe_torch": (2.0, 1e9),
    "over_mmoe_torch_adam": (2.0, 1e9),
    "over_mmoe_rechub": (2.0, 1e9),
    "over_mmoe_rechub_sparse": (2.0, 1e9),
    "mmoe_p99_ms": (0.0, 15.0),
    "dupn_p99_ms": (0.0, 15.0),
    "dupn_split": (2.0, 1e9),
}


@dataclass(frozen=True)
class Config:
    """So many rounds in which each learns for so long, and answers to time."""

    rounds: PositiveInt = 5
    seconds: PositiveFloat = 3.0
    answers: PositiveInt = 1_000


def run(report: Callable[[str], None], config: Config | None = None) -> dict[str, float]:
    """Samples a second (`mmoe`), and how many times a peer's (`over_PEER`); `MODEL_p50_ms`,
    `MODEL_p99_ms`, `MODEL_us_per_candidate` and `MODEL_split` of answers.
    """
    config = config or Config()
    torch.set_num_threads(1)
    return {**_training(report, config), **_serving(report, config)}


def _training(report: Callable[[str], None], config: Config) -> dict[str, float]:
    rates: dict[str, list[float]] = {}
    for _ in range(config.rounds):
        for name in ("mmoe", "mmoe_fp32", "mmoe_trainer", *PEERS):
            answer = ask(name, BATCH, config.seconds, threads=1)
            if answer is not None:
                rates.setdefault(name, []).append(answer["samples_per_s"])
    for name in PEERS:
        if name not in rates:
            report(f"{name} is not installed: `make peers`")
    report("samples/s: " + ", ".join(f"{name} {median(rate):,.0f}" for name, rate in rates.items()))
    figures = {"mmoe": median(rates["mmoe"])}
    for name in ("mmoe_fp32", "mmoe_trainer", *PEERS):
        if name in rates:
            figures[f"over_{name}"] = median_ratio(rates["mmoe"], rates[name])
    if "mmoe_torch" in rates:
        for name in ("mmoe_fp32", "mmoe_trainer"):
            figures[f"{name}_over_torch"] = median_ratio(rates[name], rates["mmoe_torch"])
    return figures


def _serving(report: Callable[[str], None], config: Config) -> dict[str, float]:
    figures: dict[str, float] = {}
    common = {key: OPTIONS[key] for key in ("tasks", "width", "tower", "table")}
    for name, options in SERVED.items():
        model = create(name, {**common, "fields": FIELDS, **options})
        taken_ms, times = _answers(model, config.answers)
        p50, p99 = np.percentile(taken_ms, [50, 99])
        report(
            f"{name}: {CANDIDATES} items in {p50:.2f} ms, p99 {p99:.2f} ms; {times:.1f} times as"
            " long if nothing is computed once"
        )
        figures |= {
            f"{name}_p50_ms": float(p50),
            f"{name}_p99_ms": float(p99),
            f"{name}_us_per_candidate": float(1e3 * p50 / CANDIDATES),
            f"{name}_split": times,
        }
    return figures


@torch.no_grad()
def _answers(model: Any, answers: int) -> tuple[list[float], float]:
    """How long answers take, each ms; and how many times as long with nothing computed once."""
    rng = np.random.default_rng(0)
    ids = np.stack([rng.integers(size, size=ITEMS) for size in (1, ITEMS, *DESCRIBED)], 1)
    ids[:, 1] = np.arange(ITEMS)
    catalogue = described(ids)
    add_rows(model.tables["item"], catalogue.ids)
    add_rows(model.tables["token"], np.unique(catalogue.tokens.values))
    add_rows(model.tables["user"], np.arange(answers))
    taken_ms: list[float] = []
    times: list[float] = []
    for number in range(-20, answers):  # some to warm up
        asked = _asked(rng, max(number, 0), catalogue)
        split_ms = _timed_ms(model, asked)
        if number % 20 == 0:
            alone = replace(
                asked, users=asked.users.take(asked.user_of), user_of=np.arange(len(asked))
            )
            times.append(_timed_ms(model, alone) / split_ms)
        if number >= 0:
            taken_ms.append(split_ms)
    return taken_ms, median(times[1:])


def _timed_ms(model: Any, asked: Pairs) -> float:
    begun = perf_counter()
    model.predict(asked)
    return 1e3 * (perf_counter() - begun)


def _asked(rng: np.random.Generator, user: int, catalogue: Items) -> Pairs:
    """One user, with his actions of the last day, and what he may be shown."""
    taken = rng.integers(ITEMS, size=ACTIONS)
    at_us = AT_US - np.sort(rng.integers(86_400_000_000, size=ACTIONS))[::-1]
    users = Users(
        np.array([user]),
        Jagged.of(taken, np.array([ACTIONS])),
        np.ones(ACTIONS, np.float32),
        replace(Details.unknown(ACTIONS), at_us=at_us),
        at_us=np.array([AT_US]),
        scenarios=np.array([1], np.int32),
        described=catalogue.take(np.unique(taken)),
    )
    items = catalogue.take(rng.choice(ITEMS, CANDIDATES, replace=False))
    places = np.full(CANDIDATES, NONE, np.int32)
    return Pairs(users, np.zeros(CANDIDATES, np.int64), items, places)
