"""ATRank: attention over all behaviours finds the next item more often than their mean and than a
recurrent network. That all kinds of behaviours together find more often than actions alone does not
reproduce surely: +.006 (-.003 to .015) of five seeds.

Zhou et al. (AAAI 2018) report AUC on Amazon and on their own logs. Here it is recall@20 among
the whole corpus, test-then-train, of the second half of the tests: DIGINETICA's clicks for the
first, where order and repetition matter, and the planted world with its searches and what was
passed over for the second. The readers differ in nothing else: the same rows, item tower and loss.

AUC (the share of the corpus behind the item) does not tell mean from attention on DIGINETICA: it
is decided among items that neither finds. Where each behaviour was read alone, without the tilt
from their mean, attention found no more than the mean (.181 and .176, three seeds), and where what
was passed over was read as a wish, all kinds found less than actions (.260 and .285).
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks._claims import Claim, Report
from benchmarks._streams import Learner, Stream, progressive, registered, seeded, stream
from features.batch import Users
from trainers.models.atrank import ATRank
from trainers.models.parts.history import newest
from trainers.models.parts.recurrent import Recurrent
from trainers.trainer import TrainerConfig

_CLICKS, _WORLD = 40_000, 120_000  # events
_K = 20
_SEEDS = (1, 2, 3, 4, 5)


class _One(ATRank):
    """Another reader: what a user did is one query."""

    def _keys(self, users: Users) -> tuple[Tensor, Tensor]:
        behaviours, mask = self._behaviours(users)
        one = torch.where(mask.any(1)[:, None], self._as_one(behaviours, mask), self.nobody)
        return F.normalize(one, dim=1)[:, None], torch.ones(len(one), 1, dtype=torch.bool)

    def _as_one(self, behaviours: Tensor, mask: Tensor) -> Tensor:
        raise NotImplementedError


class _Mean(_One):
    def __init__(self, config: ATRank.Config) -> None:
        super().__init__(config)
        self.encoder = _Nothing()

    def _as_one(self, behaviours: Tensor, mask: Tensor) -> Tensor:
        return behaviours.sum(1) / mask.sum(1, keepdim=True).clamp(min=1)


class _Recurrent(_One):
    def __init__(self, config: ATRank.Config) -> None:
        super().__init__(config)
        with torch.random.fork_rng():
            torch.manual_seed(config.seed)
            self.recurrent = Recurrent(config.width, config.width)
        self.encoder = _Nothing()

    def _as_one(self, behaviours: Tensor, mask: Tensor) -> Tensor:
        return newest(self.recurrent(behaviours, mask), mask)


class _Nothing(torch.nn.Module):
    """In place of self-attention: behaviours as they are, none where there is none."""

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return x * mask[..., None]


_READERS = {"attention": ATRank, "mean": _Mean, "recurrent": _Recurrent}


def _readers(seed: int, report: Report) -> Mapping[str, float]:  # noqa: ARG001
    given = stream("diginetica", _CLICKS)
    alone = {"words": 0, "passed_over": 0}  # a stream of clicks has nothing else
    figures: dict[str, float] = {}
    for name, model in _READERS.items():
        with registered(f"atrank_{name}", model) as own:
            found = _measure(given, seeded(TrainerConfig(model=own), seed, **alone))
        figures |= {name: found["recall"], f"{name}_auc": found["auc"]}
    return figures


def _kinds(seed: int, report: Report) -> Mapping[str, float]:  # noqa: ARG001
    given = stream("world", _WORLD)
    config = TrainerConfig(model="atrank")
    return {
        "all": _measure(given, seeded(config, seed))["recall"],
        "actions": _measure(given, seeded(config, seed, words=0, passed_over=0))["recall"],
    }


def _measure(given: Stream, config: TrainerConfig) -> dict[str, float]:
    """Recall@20 and the share of the items that stand behind the one that was taken."""
    learner = Learner(config)
    tested = progressive(given, learner, share=0.3)
    ranks, items = tested.rank[len(tested.rank) // 2 :], len(learner.trainer.family.corpus)
    return {
        "recall": float(np.mean(ranks < _K)),
        "auc": float(np.mean(1.0 - np.minimum(ranks, items) / items)),
    }


CLAIMS = (
    Claim(
        "over_mean", "attention finds more than the mean",
        _readers, "attention", "mean", seeds=_SEEDS,
    ),
    Claim(
        "over_lstm", "attention finds more than an LSTM",
        _readers, "attention", "recurrent", seeds=_SEEDS,
    ),
    Claim(
        "auc_over_mean", "attention has a higher AUC than the mean",
        _readers, "attention_auc", "mean_auc", reproduces=False,
        seeds=_SEEDS,
    ),
    Claim(
        "all_kinds", "searches and what was passed over help",
        _kinds, "all", "actions", reproduces=False, seeds=_SEEDS,
    ),
)  # fmt: skip
