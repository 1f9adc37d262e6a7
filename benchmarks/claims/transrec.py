"""TransRec ranks better than what knows users and items only, or factors pairs of items.

He et al., *Translation-based Recommendation*, RecSys 2017, table 3: more AUC than BPR-MF and FPMC,
most of all where data is sparse. AUC is the share of all other items that stand behind the one
that was taken next.

Here: Taobao's 130 minutes, 66,454 users with less than two actions each on average, which is as
sparse as the paper's data. Each action is learnt once, after it was asked for, not in epochs with
the last action of each user left out; so nearly all users are the paper's cold ones, of whom fewer
than five actions are known. All three models learn by the same S-BPR from the same draws,
with the trainer's optimisers. BPR-MF: Rendle et al., UAI 2009; FPMC: Rendle et al., WWW 2010.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from benchmarks._claims import Claim, Report
from benchmarks._streams import Learner, Tested, progressive, registered, seeded, stream
from features.batch import Items, Users
from trainers import models
from trainers.models.parts.history import newest, sequence
from trainers.models.transrec import TransRec
from trainers.negatives import NegativesConfig
from trainers.trainer import TrainerConfig

_COLD = 5  # actions that are known
_SHARE = 0.05  # of the samples are asked for
_OPTIONS = {"width": 16, "table": {"optimiser": {"learning_rate": 0.05}}}


class BPRMF(TransRec):
    """p(j | u) ~ beta_j + <v_u, v_j>."""

    def query(self, users: Users) -> Tensor:
        return F.pad(self.tables["user"](users.ids), (0, 1), value=1.0).unsqueeze(1)

    def items(self, items: Items) -> Tensor:
        return torch.cat([self.tables["item"](items.ids), self.tables["bias"](items.ids)], dim=1)

    def loss(self, step: models.RetrievalStep) -> Tensor:
        return super().loss(step) + 0 * self.translation.sum()


class FPMC(BPRMF):
    """p(j | u, i) ~ beta_j + <v_u, v_j> + <w_i, h_j>."""

    def __init__(self, config: TransRec.Config) -> None:
        super().__init__(config)
        self.width = 2 * config.width + 1
        for name in ("from", "to"):
            self.tables[name] = self._table(name, config.width, config.table.birth_scale)

    def query(self, users: Users) -> Tensor:
        rows, padded = sequence(self.tables["from"], users, 1)
        last = newest(rows, padded.mask)[:, None]  # (B, 1, d)
        return torch.cat([last, super().query(users)], dim=2)

    def items(self, items: Items) -> Tensor:
        return torch.cat([self.tables["to"](items.ids), super().items(items)], dim=1)


_CONTENDERS: Mapping[str, type[TransRec]] = {"transrec": TransRec, "bpr_mf": BPRMF, "fpmc": FPMC}


def _config(model: str) -> TrainerConfig:
    return TrainerConfig(model=model, options=_OPTIONS, negatives=NegativesConfig(uniform=512))


def measure(seed: int, report: Report) -> Mapping[str, float]:
    """AUC of all three, of all users and of the cold ones."""
    found: dict[str, float] = {}
    for name, model in _CONTENDERS.items():
        with registered(name, model) as own:
            learner = Learner(seeded(_config(own), seed))
        tested = progressive(stream("taobao-2h"), learner, share=_SHARE)
        items = len(learner.trainer.family.corpus)
        found[name] = auc(tested, items)
        found[f"{name} of cold users"] = auc(tested, items, tested.known < _COLD)
        report(f"  {name}: {tested.samples_per_s:,.0f} samples/s")
    return found


def auc(tested: Tested, items: int, part: NDArray[np.bool_] | None = None) -> float:
    """The mean share of `items` behind the one taken; none, if it was not known yet."""
    ranks = tested.rank if part is None else tested.rank[part]
    return float(np.mean(1 - np.minimum(ranks, items) / items))


CLAIMS = tuple(
    Claim(
        f"{part}over_{baseline}",
        f"AUC{of} over {baseline}",
        measure,
        f"transrec{of}",
        f"{baseline}{of}",
    )
    for part, of in (("", ""), ("cold_", " of cold users"))
    for baseline in ("bpr_mf", "fpmc")
)
