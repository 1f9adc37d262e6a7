"""MIND: several interests of a user find more than one vector does, and they come apart.

Li et al. (CIKM 2019) compare with one interest on Tmall and Amazon, by the hit rate of whole
histories. Here it is test-then-train among the whole corpus, the second half of the tests: in a
world of tastes where every user has three of them and takes next an item of any, in fewer
dimensions than there are tastes, so that no vector lies near three of them and far from the others;
and in the planted world of the source, whose users have up to four interests that drift, but keep
to one within a session.

`apart` is the share of a user's three tastes that are, of all, the nearest to one of his interests,
of users that were never seen; one interest can be nearest to one only, a third.

In 64 dimensions, more than the source's 32 topics, a vector has room for all of a user's interests,
and several find no more: the paper's own condition, that a vector be not long enough, is not given.
Sharper attention to the label (`power = 2`) finds .323 in the world of tastes, where 1 finds .490:
an interest that is not the nearest then hardly learns.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from benchmarks._claims import Claim, Report
from benchmarks._streams import Data, Learner, Stream, progressive, seeded, steps, stream
from features.batch import Ids, Items, Jagged, Users
from features.definitions import SAMPLE_FEATURES
from streaming.samples import sample_schema
from trainers.trainer import TrainerConfig

_WORLD = 130_000  # events
_SEEDS = (1, 2, 3, 4, 5)  # there the difference is small
_TASTES, _SIZE = 40, 25
_OF_A_USER, _KNOWN = 3, 20
_SAMPLES, _STEP = 36_000, 256
_NARROW = {"width": 8, "table": {"optimiser": {"learning_rate": 0.3}}}
_NOTHING = np.empty(0, np.int64)


def _tastes(seed: int, report: Report) -> Mapping[str, float]:  # noqa: ARG001
    given = _world_of_tastes()
    figures: dict[str, float] = {}
    for name, interests in (("several", 4), ("one", 1)):
        learner = Learner(seeded(TrainerConfig(model="mind"), seed, interests=interests, **_NARROW))
        figures |= {name: _recall(given, learner), f"{name}_apart": _apart(learner)}
    return figures


def _world(seed: int, report: Report) -> Mapping[str, float]:  # noqa: ARG001
    given = stream("world", _WORLD)
    return {
        f"{name}{width}": _recall(
            given,
            Learner(seeded(TrainerConfig(model="mind"), seed, interests=interests, width=width)),
        )
        for name, interests in (("several", 4), ("one", 1))
        for width in (8, 64)
    }


def _recall(given: Stream, learner: Learner) -> float:
    tested = progressive(given, learner, share=0.3)
    return tested.recall(50, tested.number > tested.number.max() // 2)


@torch.no_grad()
def _apart(learner: Learner) -> float:
    tastes, histories = _users(np.random.default_rng(1), 500)
    model = learner.trainer.model
    whole = Jagged.of(histories[:, :-1].ravel(), np.full(500, _KNOWN))
    rewards = np.ones(500 * _KNOWN, np.float32)
    strangers = Users(np.arange(500), whole, rewards, described=_bare(_NOTHING))
    centres = model.items(_bare(np.arange(_TASTES * _SIZE))).view(_TASTES, _SIZE, -1).mean(1)
    nearest = (model.query(strangers) @ centres.T).argmax(-1).numpy()  # (users, K), tastes
    found = (nearest[:, None] == tastes[..., None]).any(-1)  # (users, 3)
    return float(found.mean())


@cache
def _world_of_tastes() -> Stream:
    _, items = _users(np.random.default_rng(0), _SAMPLES)
    schema = sample_schema((), SAMPLE_FEATURES)
    at_us = 1_700_000_000_000_000 + np.arange(_SAMPLES)
    known = pa.FixedSizeListArray.from_arrays(pa.array(items[:, :-1].ravel()), _KNOWN)
    pleased = np.ones(_SAMPLES * _KNOWN, np.float32)
    ones = pa.FixedSizeListArray.from_arrays(pa.array(pleased), _KNOWN)
    columns: dict[str, Any] = {
        "user_id": np.arange(_SAMPLES),
        "item_id": items[:, -1],
        "at": pa.array(at_us).cast(schema.field("at").type),
        "kind": pa.array(["click"] * _SAMPLES),
        "history": known.cast(schema.field("history").type),
        "history_rewards": ones.cast(schema.field("history_rewards").type),
        "reward": np.ones(_SAMPLES, np.float32),
        "label_liked": np.zeros(_SAMPLES, np.bool_),
        "logged_us": at_us,
    }
    arrays = [
        pa.array(columns[f.name]) if f.name in columns else pa.nulls(_SAMPLES, f.type)
        for f in schema
    ]
    rows = pa.RecordBatch.from_arrays(arrays, schema=schema)
    return Stream("tastes", Data(), list(steps(rows, _STEP)))


def _users(rng: np.random.Generator, count: int) -> tuple[Ids, NDArray[np.int64]]:
    """Three tastes each (count, 3), and what they took, oldest first (count, 21)."""
    tastes = np.argsort(rng.random((count, _TASTES)), axis=1)[:, :_OF_A_USER]
    which = rng.integers(_OF_A_USER, size=(count, _KNOWN + 1))
    taken = np.take_along_axis(tastes, which, axis=1) * _SIZE
    return tastes, taken + rng.integers(_SIZE, size=taken.shape)


def _bare(ids: Ids) -> Items:
    return Items(ids, Jagged.of(_NOTHING, np.zeros(len(ids), np.int64)))


CLAIMS = (
    Claim("over_one", "several interests find more than one", _tastes, "several", "one"),
    Claim("apart", "interests are of different tastes", _tastes, "several_apart", "one_apart"),
    Claim(
        "over_one_narrow", "so in 8 dimensions of the world",
        _world, "several8", "one8", seeds=_SEEDS,
    ),
    Claim(
        "over_one_wide", "and in 64",
        _world, "several64", "one64", seeds=_SEEDS, reproduces=False,
    ),
)  # fmt: skip
