"""What rankers have in common: fields in, for each task what is to be expected out.

A system is its network, from the vectors of fields to what its towers read (`Multitask.base`), and
perhaps other towers (`outputs`) or another way from these to what is expected (`expected`). What
any of them can wear - another space, a correction of position bias, a balance of losses - is a
setting.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from pydantic import NonNegativeInt, PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F

from features.batch import Users
from features.shown import Pairs
from streaming.errors import ConfigError
from trainers.item_response import COEC
from trainers.models import RankingStep
from trainers.models.parts.balance import BalanceConfig, make_balance
from trainers.models.parts.chance import generator
from trainers.models.parts.fields import OF_USERS, TABLES, Fields
from trainers.models.parts.position_bias import Places, PositionConfig, make_position_bias
from trainers.models.parts.products import biased, joined, products, stacked
from trainers.models.parts.tables import tables
from trainers.softmax import Precision
from trainers.table import TableConfig
from trainers.tasks import Space, Task, check_tasks, expected, roots, task_losses

RARE = -2.0  # a logit
# What is young is near zero, so a tower's hidden unit is on for all pairs or for none, and whose
# bias was pushed below once is off for good: of plain ReLUs half were after 200 steps, or all.
_LEAK = 0.1


@dataclass(frozen=True)
class RankerConfig:
    """`tasks` are labels of samples, learnt in a `space` (`trainers.tasks.Task`). `fields` are
    those of `parts.fields`, of width `width`; `tower` is that of the hidden layer of a task's own.
    Of the `crossed`, each a field of users and one of items, it also reads the product of both,
    number by number, as unit vectors: what a hidden layer is slow to find (Rendle et al., *Neural
    Collaborative Filtering vs. Matrix Factorization Revisited*, RecSys 2020).
    """

    tasks: Mapping[str, Task] = field(default_factory=lambda: {"click": Task()})
    fields: tuple[str, ...] = ("user_id", "history", "scenario", "item_id", "genres", "year")
    width: PositiveInt = 16
    crossed: tuple[tuple[str, str], ...] = ()
    history: NonNegativeInt = 50
    tower: PositiveInt = 32
    space: Space = "shown"
    position: PositionConfig = field(default_factory=PositionConfig)
    balance: BalanceConfig = field(default_factory=BalanceConfig)
    precision: Precision = "auto"
    table: TableConfig = field(default_factory=TableConfig)
    seed: int = 0

    def __post_init__(self) -> None:
        check_tasks(self.tasks, self.space)
        of_users = [name for name in self.fields if name in OF_USERS]
        if not 0 < len(of_users) < len(self.fields):
            raise ConfigError(
                f"fields = {', '.join(self.fields) or 'none'}: a pair needs one of users"
                f" ({', '.join(OF_USERS)}) and one of items"
            )
        for user, item in self.crossed:
            if user not in of_users or item not in self.fields or item in OF_USERS:
                raise ConfigError(
                    f"crossed = {[user, item]}: a field of users and one of items, both of `fields`"
                )
        first = self.tasks.get(roots(self.tasks)[0])
        if COEC in self.fields and first is not None and not first.is_binary:
            raise ConfigError(
                f"fields = {', '.join(self.fields)}: {COEC} counts what comes of showing an item,"
                f" and {roots(self.tasks)[0]} is a value: put a binary task before it"
            )
        self.position.columns(self.tasks)
        self.balance.bounds(self.tasks)


class Inputs:
    """What a network reads of n pairs of m users: of each user (m, a), whose each pair is (n,), of
    each item (n, b), in one part or several. If `user_of` is None, it is m = n users in the order
    of the pairs.
    """

    def __init__(
        self,
        users: Tensor,
        user_of: Tensor | None,
        *items: Tensor,
        precision: Precision = "float32",
    ) -> None:
        self.users = users
        self.user_of = user_of
        self.precision = precision
        self._item_parts = items

    @cached_property
    def items(self) -> Tensor:
        """(n, b)."""
        return joined(self._item_parts)

    def of_pairs(self, of_users: Tensor) -> Tensor:
        """(n, ...), what is known of users (m, ...), for each pair."""
        return of_users if self.user_of is None else of_users[self.user_of]

    @cached_property
    def flat(self) -> Tensor:
        """(n, a + b)."""
        return joined([self.of_pairs(self.users), *self._item_parts])

    def through(self, layer: nn.Linear) -> Tensor:
        """A layer of `flat`, (n, out): what depends on the user alone is computed once for him."""
        (found,) = self.through_all([layer])
        return found

    def through_all(self, layers: Sequence[nn.Linear]) -> list[Tensor]:
        """Layers of `flat`, (n, out) each, in one product."""
        if self.user_of is None:
            return products([self.users, *self._item_parts], layers, self.precision)
        known = self.users.shape[1]
        weight = stacked([layer.weight for layer in layers])
        theirs = self.of_pairs(F.linear(self.users, weight[:, :known]))
        found = theirs + F.linear(self.items, weight[:, known:])
        return biased(found, layers)


class Multitask(nn.Module):
    """A ranker (`trainers.models.Ranker`) of several tasks."""

    describes = False
    reads: tuple[str, ...] = (
        "user_id", "item_id", "item_tokens", "item_fields", "scenario", "at", "position",
        "history", "history_rewards", "negative_rate",
    )  # fmt: skip

    def __init__(self, config: Any, user_width: int | None = None) -> None:
        """`user_width` is how many numbers `user_part` gives; those of the users' fields if None.

        A system makes its own parts in a `torch.random.fork_rng()` with its seed.
        """
        super().__init__()
        self.config = config
        self.tasks: Mapping[str, Task] = config.tasks
        self.reads_coec = COEC in config.fields
        self.space: Space = config.space
        self.tables = tables(config.table, config.width, config.seed, *TABLES)
        self.fields = Fields(config.fields, config.history)
        with torch.random.fork_rng():
            torch.manual_seed(config.seed)
            self.position = make_position_bias(config.position, config.width, config.tasks)
            self.balance = make_balance(config.balance, config.tasks)
        own = len(self.fields.of_users) * config.width
        self.user_width = own if user_width is None else user_width
        more = (self.position.fields + len(config.crossed)) * config.width
        self.item_width = len(self.fields.of_items) * config.width + more

        of_users, of_items = self.fields.of_users, self.fields.of_items
        self._crossed = [(of_users.index(u), of_items.index(i)) for u, i in config.crossed]

    @property
    def begins(self) -> list[float]:
        """For each task near what its output is to begin: most that is shown is shown in vain, and
        who begins in the middle has first to learn that.
        """
        return [RARE if task.is_binary else 0.0 for task in self.tasks.values()]

    # -- what a system says ----------------------------------------------------------------

    def user_part(self, users: Users, fields: Tensor) -> Tensor:  # noqa: ARG002
        """(m, user_width), what depends on the user alone; `fields` (m, F_u, d) are his."""
        return fields.flatten(1)

    def base(self, inputs: Inputs, pairs: Pairs) -> Tensor:
        """(n, K, r), what the tower of each of the K tasks reads; (n, 1, r) if all the same."""
        raise NotImplementedError

    def outputs(self, base: Tensor) -> Tensor:
        """(n, K), a logit or a value for each task."""
        raise NotImplementedError

    def expected(self, outputs: Tensor, seen: Tensor | None) -> dict[str, Tensor]:
        """What is to be expected of showing each pair (n,), for each task."""
        return expected(self.tasks, outputs, self.space, seen)

    # -- the ranker ------------------------------------------------------------------------

    def predict(self, pairs: Pairs) -> dict[str, Tensor]:
        outputs = self.outputs(self.base(self._inputs(pairs, None), pairs))
        return self.expected(self.position.outputs(outputs, self.tables, None), None)

    def loss(self, step: RankingStep) -> Tensor:
        pairs = step.pairs
        drawn_from = generator(self.config.seed, step.seed)
        places = Places(pairs.positions, pairs.users.scenarios[pairs.user_of], drawn_from)
        base = self.base(self._inputs(pairs, places), pairs)
        outputs = self.position.outputs(self.outputs(base), self.tables, places)
        predictions = self.expected(outputs, self.position.seen(self.tables, places))
        labels = {name: label.to(base.device) for name, label in step.labels.items()}
        rates = step.rates.to(base.device)
        losses = task_losses(self.tasks, predictions, labels, rates, self.space, step.groups)
        first = [labels[name] for name in roots(self.tasks)]
        penalty = self.position.penalty(base.flatten(1), self.tables, places, first)
        balanced: Tensor = self.balance(losses, labels, base)
        return balanced + penalty

    def _inputs(self, pairs: Pairs, places: Places | None) -> Inputs:
        of_users = self.fields.users(self.tables, pairs.users)
        users = self.user_part(pairs.users, of_users)
        parts = self.fields.item_parts(self.tables, pairs.items)
        in_order = len(users) == len(pairs) and bool((pairs.user_of == np.arange(len(pairs))).all())
        user_of = None if in_order else torch.from_numpy(pairs.user_of).to(users.device)
        if self._crossed:
            of_items = joined(parts).view(len(pairs), -1, self.config.width)
            parts.append(self._crosses(of_users if in_order else of_users[user_of], of_items))
        if (field_ := self.position.field(self.tables, places, len(pairs))) is not None:
            parts.append(field_)
        precision: Precision = "float32" if places is None else self.config.precision
        return Inputs(users, user_of, *parts, precision=precision)

    def _crosses(self, of_users: Tensor, of_items: Tensor) -> Tensor:
        """(n, crosses d), of the fields of each pair's user (n, F_u, d) and item (n, F_i, d)."""
        left = F.normalize(of_users[:, [u for u, _ in self._crossed]], dim=2)
        right = F.normalize(of_items[:, [i for _, i in self._crossed]], dim=2)
        crossed: Tensor = math.sqrt(left.shape[2]) * left * right
        return crossed.flatten(1)


class Layers(nn.Module):
    """K hidden layers that each read the whole of a pair, side by side in one product: (n, K, h).

    They are the networks of tasks, or experts.
    """

    def __init__(self, count: int, inputs: int, hidden: int) -> None:
        super().__init__()
        self.count = count
        self.layer = nn.Linear(inputs, count * hidden)

    def forward(self, inputs: Inputs) -> Tensor:
        return self.hidden(inputs.through(self.layer))

    def hidden(self, made: Tensor) -> Tensor:
        """(n, K, h), of what `layer` gives, in its place."""
        return made.relu_().view(len(made), self.count, -1)


class Towers(nn.Module):
    """For each of K tasks one hidden layer of leaky ReLUs: (n, K or 1, r) to (n, K), all in one
    product. Each begins near what `begins` says.
    """

    def __init__(self, begins: Sequence[float], inputs: int, hidden: int) -> None:
        super().__init__()
        one = [nn.Linear(inputs, hidden) for _ in begins]
        last = [nn.Linear(hidden, 1) for _ in begins]
        self.hidden = nn.Parameter(torch.stack([layer.weight.detach().T for layer in one]))
        self.hidden_bias = nn.Parameter(torch.stack([layer.bias.detach() for layer in one]))
        self.last = nn.Parameter(torch.cat([layer.weight.detach() for layer in last]))  # (K, h)
        biases = torch.cat([layer.bias.detach() for layer in last])
        self.last_bias = nn.Parameter(biases + torch.tensor(begins))  # (K,)

    def forward(self, base: Tensor) -> Tensor:
        read = base.expand(-1, len(self.hidden), -1).transpose(0, 1)  # (K, n, r)
        hidden = torch.bmm(read, self.hidden).add_(self.hidden_bias[:, None])
        hidden = F.leaky_relu_(hidden, _LEAK)  # (K, n, h)
        return torch.bmm(hidden, self.last[:, :, None])[:, :, 0].T + self.last_bias
