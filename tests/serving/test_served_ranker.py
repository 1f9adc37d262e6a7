"""A ranker as replicas serve it: versions in, what is to be expected of candidates out."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from features.batch import Jagged, Users
from features.shown import Pairs
from serving.replica import Applied, Replica, ServedRanker, ranker
from streaming.event_columns import NONE
from tests.serving.lessons import taught, teach, versions
from trainers.calibration import Curves
from trainers.trainer import Trainer
from trainers.versions import Version

CLICKED, OTHERS = [1, 3, 5], [2, 4, 6]
ITEMS = sorted(CLICKED + OTHERS)


def asked(trainer: Trainer, user: Users, items: list[int]) -> dict[str, torch.Tensor]:
    """What the trainer's own model expects."""
    ids = np.array(items)
    pairs = Pairs(
        user, np.zeros(len(ids), np.int64), trainer.family.book.items(ids),
        np.full(len(ids), NONE, np.int32),
    )  # fmt: skip
    with torch.no_grad():
        found: dict[str, torch.Tensor] = trainer.model.predict(pairs)
    return found


USER = Users(np.array([11]), Jagged.of(np.array([1, 3, 2]), np.array([3])), np.ones(3, np.float32))


def test_it_expects_what_the_trainers_model_does() -> None:
    trainer, replica = taught(CLICKED, OTHERS), Replica(make=ranker)
    assert replica.take(versions(trainer, 10.0)[-1]) is Applied.APPLIED
    for at_s in (20.0, 30.0):  # then by deltas
        with replica.reading() as served:
            assert isinstance(served, ServedRanker)
            found = served.rank(USER, np.array([*ITEMS, 99]))
        expected = asked(trainer, USER, [*ITEMS, 99])
        assert found.keys() == expected.keys()
        for task, made in found.items():
            np.testing.assert_allclose(made, expected[task].numpy(), rtol=1e-3, atol=1e-4)
        teach(trainer, CLICKED, OTHERS, 3)
        assert replica.take(versions(trainer, at_s)[0]) is Applied.APPLIED


def test_what_is_served_is_calibrated() -> None:
    trainer, replica = taught(CLICKED, OTHERS, 20, "platt"), Replica(make=ranker)
    version = versions(trainer, 10.0)[-1]
    replica.take(version)
    with replica.reading() as served:
        assert served is not None
        found = served.rank(USER, np.array(ITEMS))
    raw = asked(trainer, USER, ITEMS)
    curves = Curves.from_table(version.shards["calibration"])
    for task, made in found.items():
        expected = curves.calibrated(task, raw[task].double().numpy())
        np.testing.assert_allclose(made, expected, rtol=1e-3)
        assert np.abs(made - raw[task].numpy()).max() > 1e-3


def test_it_has_learnt_who_is_clicked() -> None:
    replica = Replica(make=ranker)
    replica.take(versions(taught(CLICKED, OTHERS, 40), 10.0)[-1])
    with replica.reading() as served:
        assert served is not None
        clicks = served.rank(USER, np.array(ITEMS))["click"]
    liked = np.isin(ITEMS, CLICKED)
    assert clicks[liked].min() > clicks[~liked].max()


def test_the_order_of_the_candidates_changes_nothing() -> None:
    replica = Replica(make=ranker)
    replica.take(versions(taught(CLICKED, OTHERS), 10.0)[-1])
    with replica.reading() as served:
        assert served is not None
        there = served.rank(USER, np.array(ITEMS))["click"]
        back = served.rank(USER, np.array(ITEMS[::-1]))["click"]
        assert served.rank(USER, np.empty(0, np.int64))["click"].shape == (0,)
    np.testing.assert_allclose(there, back[::-1], rtol=1e-5)


def test_a_version_that_is_not_whole_is_refused() -> None:
    version = versions(taught(CLICKED, OTHERS), 10.0)[-1]
    for missing in ("items", "calibration"):
        bare = {name: shard for name, shard in version.shards.items() if name != missing}
        replica = Replica(make=ranker)
        assert replica.take(Version(version.info, bare)) is Applied.REFUSED
        assert f"shard {missing!r} is missing" in replica.refusal


def test_a_retrievers_version_is_refused_by_a_rankers_replica(
    random_version: Callable[..., Version],
) -> None:
    replica = Replica(make=ranker)
    assert replica.take(random_version(ITEMS)) is Applied.REFUSED


def test_a_retrievers_replica_refuses_a_rankers_version() -> None:
    version = versions(taught(CLICKED, OTHERS), 10.0)[-1]
    replica = Replica()
    assert replica.take(version) is Applied.REFUSED
    assert "it is of a model of family ranking" in replica.refusal
