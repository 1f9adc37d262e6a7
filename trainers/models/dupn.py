"""DUPN: what a user did becomes one vector, which every task reads and is computed once for him.

Ni et al., *Perceive Your Users in Depth: Learning Universal User Representations from Multiple
E-commerce Tasks*, KDD 2018. A behaviour is an item, by its id and what describes it, and its
property: kind, scenario and age of the action. An LSTM reads behaviours in order, with properties
at its gates alone:

    i, f, o = sigmoid(W_i item + W_p property + W_h h + b)          each with its own W
    c = f * c + i * tanh(W_c item + W_hc h + b_c)          h = o * tanh(c)

Attention weighs the states h_t by what the user searches for, and by who he is:

    a_t = softmax_t(mlp([h_t, property_t, user, query]))          vector = [sum_t a_t h_t, user]

Each task has a network of its own over this vector and the item. What depends on the user is
computed once, however many items he is to be shown.

What differs: any tasks, where the paper has four of its own; all are of pairs. A search is the
present one for ten minutes; who searches for nothing has zeros for a query.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from pydantic import PositiveFloat, PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F

from features.batch import Items, Users
from features.sessions import GAP_US
from features.shown import Pairs
from features.tensors import PaddedHistory
from streaming.event_columns import field_codes
from trainers.models import RANKING, register
from trainers.models.parts.attention import attend
from trainers.models.parts.described import history_items
from trainers.models.parts.history import padded_rows
from trainers.models.parts.ranker import Inputs, Layers, Multitask, RankerConfig, Towers
from trainers.models.parts.searches import Searches

_KINDS = 17  # of actions, the first: not known
_AGES = 32  # buckets, each twice as long as the one before


@register("dupn", RANKING)
class DUPN(Multitask):
    """`predict` reads histories with kinds, times, scenarios and what describes their items, the
    present search, and whatever its `fields` are.
    """

    describes = True
    reads = (
        *Multitask.reads,
        *("history_kinds", "history_at_us", "history_scenarios", "searched", "searched_at_us"),
    )

    @dataclass(frozen=True)
    class Config(RankerConfig):
        """`fields` of users are who a user is. Of his actions the newest `behaviours` are read, and
        `described` of their items. `state` is the width of the LSTM, `attention` that of the hidden
        layer that weighs its states, `hidden` that of the first layer of each task's network. A
        search is the present one for `present_s`.
        """

        fields: tuple[str, ...] = ("user_id", "scenario", "item_id", "genres", "year")
        described: tuple[str, ...] = ("genres", "year")
        behaviours: PositiveInt = 20
        state: PositiveInt = 32
        attention: PositiveInt = 32
        hidden: PositiveInt = 64
        present_s: PositiveFloat = GAP_US / 1e6

    def __init__(self, config: Config) -> None:
        width = config.width
        super().__init__(config)
        who = self.user_width
        self.user_width = config.state + who
        self._described: list[int] = field_codes(config.described).tolist()
        with torch.random.fork_rng():
            torch.manual_seed(config.seed)
            self.kinds = nn.Embedding(_KINDS, width)
            self.ages = nn.Embedding(_AGES, width)
            items, properties = (1 + len(config.described)) * width, 3 * width
            self.lstm = PropertyGatedLSTM(items, properties, config.state)
            self.told = nn.Linear(config.state + properties, config.attention)
            self.asked = nn.Linear(who + width, config.attention, bias=False)
            self.weighs = nn.Parameter(torch.randn(config.attention))
            inputs, count = self.user_width + self.item_width, len(self.tasks)
            self.networks = Layers(count, inputs, config.hidden)
            self.towers = Towers(self.begins, config.hidden, config.tower)

    def user_part(self, users: Users, fields: Tensor) -> Tensor:
        who = fields.flatten(1)  # (m, w)
        found = history_items(users, self.config.behaviours)
        mask = found.padded.mask.to(who.device)
        properties = self._properties(found.padded)  # (m, L, 3 d)
        states = self.lstm(found.of_actions(self._items(found.items)), properties, mask)
        asked = self.asked(torch.cat([who, self._query(users)], 1))[:, None]
        read = (self.told(torch.cat([states, properties], 2)) + asked).relu()  # (m, L, a)
        weighs = self.weighs.expand(len(who), 1, -1)
        return torch.cat([attend(weighs, read, states, mask)[:, 0], who], 1)  # (m, e + w)

    def base(self, inputs: Inputs, pairs: Pairs) -> Tensor:  # noqa: ARG002
        hidden: Tensor = self.networks(inputs)
        return hidden  # (n, K, hidden)

    def outputs(self, base: Tensor) -> Tensor:
        made: Tensor = self.towers(base)
        return made

    def _items(self, items: Items) -> Tensor:
        """Of each item of behaviours its id and what describes it, (N, a)."""
        tokens = [items.of_field(code) for code in self._described]
        fields = [self.tables["token"].mean(of.values, of.offsets) for of in tokens]
        return torch.cat([self.tables["item"](items.ids), *fields], 1)

    def _properties(self, padded: PaddedHistory) -> Tensor:
        """The kind, the age and the scenario of each behaviour, (m, L, 3 d)."""
        scenarios = padded_rows(self.tables["context"], padded.scenarios + 1, padded.mask)
        kinds = padded.kinds.clamp(-1, _KINDS - 2) + 1
        ages = torch.log2(1.0 + padded.ages_s).long().clamp(max=_AGES - 1)
        of_kinds, of_ages = (
            self.kinds(kinds.to(scenarios.device)),
            self.ages(ages.to(scenarios.device)),
        )
        return torch.cat([of_kinds, of_ages, scenarios], 2)

    def _query(self, users: Users) -> Tensor:
        """The mean of the words of the present search, (m, d)."""
        searches = Searches.of(users.searched)
        age_us = users.at_us[searches.owners()] - searches.at_us
        present = searches.newest() & (age_us < self.config.present_s * 1e6)
        words = searches.where(present).of_users()
        return self.tables["token"].mean(words.values, words.offsets)


class PropertyGatedLSTM(nn.Module):
    """Sequences of items (m, L, a) and of their properties (m, L, p), with a mask (m, L), give the
    state after each (m, L, e), zeros where nothing is. Properties say how much of an item goes in,
    stays and comes out, and are nothing that goes in. Padding is behind, and changes nothing.
    """

    def __init__(self, items: int, properties: int, state: int) -> None:
        super().__init__()
        self.items = nn.Linear(items, 4 * state)  # i, f, o, and what may go in
        self.properties = nn.Linear(properties, 3 * state, bias=False)
        self.states = nn.Linear(state, 4 * state, bias=False)

    def forward(self, items: Tensor, properties: Tensor, mask: Tensor) -> Tensor:
        width = self.states.in_features
        read = self.items(items) + F.pad(self.properties(properties), (0, width))  # (m, L, 4 e)
        state = cell = read.new_zeros(len(read), width)
        found = []
        for step in read.unbind(1):
            gates, new = (step + self.states(state)).split([3 * width, width], 1)
            goes_in, stays, comes_out = gates.sigmoid().chunk(3, 1)
            cell = stays * cell + goes_in * new.tanh()
            state = comes_out * cell.tanh()
            found.append(state)
        return torch.stack(found, 1) * mask[..., None]
