"""SDM: what a user does in this session and what he did in the days before, fused by a gate.

Lv et al., *SDM: Sequential Deep Matching Model for Online Large-scale Recommender System*, CIKM
2019. An item is its id and its side information, field by field. The newest session is read by an
LSTM and multi-head self-attention, then by the user's attention; the week before it as one set of
values for each field, each read by the user's attention. A gate takes of each number of the result
so much from the one and so much from the other.

Where this differs from the paper, for a stream that is learnt once:
- LSTM, self-attention and the net over the sets add to what they read, and fields are joined by a
  map that begins as their sum: an untrained model already looks for items that are like those of
  the history.
- A user is an id, and begins as what all users have in common: most are new when they are learnt.
- Vectors have length 1 and the softmax has a temperature.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from pydantic import PositiveFloat, PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F

from features.batch import Items, Users
from features.sessions import session_numbers
from streaming.event_columns import field_codes
from trainers.models import RetrievalStep, register
from trainers.models.parts.attention import SelfAttention, attend
from trainers.models.parts.described import history_items
from trainers.models.parts.gates import FusionGate
from trainers.models.parts.recurrent import Recurrent
from trainers.models.parts.tables import tables
from trainers.softmax import Precision, sampled_softmax
from trainers.table import TableConfig

_DAY_US = 86_400_000_000


@register("sdm")
class Sdm(nn.Module):
    """`query` reads user ids, and histories with times, sessions and what describes their items;
    `items` reads item ids and the tokens of some fields.
    """

    describes, unit = True, True
    reads = (
        "user_id", "item_id", "item_tokens", "item_fields",
        "history", "history_at_us", "history_sessions",
    )  # fmt: skip

    @dataclass(frozen=True)
    class Config:
        """Of the newest session and of the `long_days` before it the newest `history` actions each
        are read. `fields` name the side information, each an embedding and a set of its own;
        without them all that describes items is one. `fusion` other than by the gate is the
        paper's comparison.
        """

        width: PositiveInt = 64
        heads: PositiveInt = 4
        history: PositiveInt = 50
        long_days: PositiveFloat = 7.0
        fields: tuple[str, ...] = ()
        fusion: Literal["gate", "short", "long", "concat"] = "gate"
        temperature: PositiveFloat = 0.07
        table: TableConfig = field(default_factory=TableConfig)
        precision: Precision = "auto"
        seed: int = 0

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.width = width = config.width
        self.temperature = config.temperature
        self.tables = tables(
            config.table, config.width, config.seed, "user", "item", "token", zero={"user"}
        )
        self.fields = field_codes(config.fields).tolist()
        sets = 1 + max(1, len(self.fields))  # of values: ids, and each field's
        with torch.random.fork_rng():
            torch.manual_seed(config.seed)
            self.joined = _sum_of(sets, width)
            self.everyone = nn.Parameter(torch.randn(width) / width)
            self.nobody = nn.Parameter(torch.randn(width) / width)  # who did nothing
            if config.fusion != "long":
                self.recurrent = Recurrent(width, width)
                self.attention = SelfAttention(width, config.heads)
            if config.fusion != "short":
                self.long_net = nn.Linear(sets * width, width)
            if config.fusion == "gate":
                self.gate = FusionGate(width)
            if config.fusion == "concat":
                self.concat = _sum_of(3, width)

    def query(self, users: Users) -> Tensor:
        profile = self.tables["user"](users.ids) + self.everyone  # (B, d)
        session, before = self._split(users)
        match self.config.fusion:
            case "short":
                fused = self._short(session, profile)
            case "long":
                fused = self._long(before, profile)
            case "gate":
                fused = self.gate(
                    profile, self._short(session, profile), self._long(before, profile)
                )
            case "concat":
                parts = profile, self._short(session, profile), self._long(before, profile)
                fused = self.concat(torch.cat(parts, -1))
        return F.normalize(fused + self.nobody, dim=-1).unsqueeze(1)  # (B, 1, d)

    def items(self, items: Items) -> Tensor:
        return F.normalize(self._vectors(items), dim=-1)  # (N, d)

    def loss(self, step: RetrievalStep) -> Tensor:
        return sampled_softmax(
            self.query(step.users)[:, 0],
            torch.cat([self.items(step.candidates), step.remembered]),
            step.sampling,
            step.weights,
            self.temperature,
            precision=self.config.precision,
        )

    def _vectors(self, items: Items) -> Tensor:
        vectors: Tensor = self.joined(torch.cat([rows for rows, _ in self._sets(items)], -1))
        return vectors  # (N, d)

    def _sets(self, items: Items) -> list[tuple[Tensor, Tensor]]:
        """Ids, then each field: the items' rows (N, d), and who has a value at all, (N, 1)."""
        identity = self.tables["item"](items.ids)
        values = [items.of_field(code) for code in self.fields] or [items.tokens]
        return [
            (identity, torch.ones_like(identity[:, :1])),
            *(
                (
                    self.tables["token"].mean(tokens.values, tokens.offsets),
                    torch.from_numpy(tokens.lengths > 0)[:, None].to(identity),
                )
                for tokens in values
            ),
        ]

    def _split(self, users: Users) -> tuple[Users, Users]:
        """The same users with their newest session, and with what they did in the days before."""
        details, history = users.details, users.history
        at_us, owners = details.at_us, history.owners()
        in_session = session_numbers(at_us, history, details.sessions) == 0
        sizes = np.bincount(owners[in_session], minlength=len(users.ids))
        begun_us = at_us[(history.offsets[1:] - sizes)[owners]]
        lately = begun_us - at_us <= self.config.long_days * _DAY_US
        return users.where(in_session), users.where(~in_session & lately)

    def _short(self, users: Users, profile: Tensor) -> Tensor:
        """(B, d) of the actions of a session, in their order."""
        session = history_items(users, self.config.history)
        mask = session.padded.mask.to(profile.device)
        x = session.of_actions(self._vectors(session.items))  # (B, L, d)
        x = x + self.recurrent(x, mask)
        x = x + self.attention(x, mask)
        return attend(profile[:, None], x, x, mask)[:, 0]

    def _long(self, users: Users, profile: Tensor) -> Tensor:
        """(B, d) of sets of values, in no order."""
        history = history_items(users, self.config.history)
        found = []
        for rows, known in self._sets(history.items):
            x, there = history.of_actions(rows), history.of_actions(known)[..., 0] > 0
            found.append(attend(profile[:, None], x, x, there)[:, 0])
        return found[0] + torch.tanh(self.long_net(torch.cat(found, -1)))


def _sum_of(parts: int, width: int) -> nn.Linear:
    """A net over vectors side by side (n, parts * d) that begins as their sum (n, d)."""
    net = nn.Linear(parts * width, width)
    nn.init.zeros_(net.bias)
    net.weight.data = torch.eye(width).repeat(1, parts)
    return net
