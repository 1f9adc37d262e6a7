"""ESM2: between click and purchase lies an action, such as a cart, and two ways lead past it.

Wen et al., *Entire Space Multi-Task Modeling via Post-Click Behavior Decomposition for Conversion
Rate Prediction*, SIGIR 2020. Purchases are rare, actions that lead to them are not. Over all that
is shown, y1 is the probability of a click, y2 of the action after a click (else it is some other
one), y3 of a purchase after the action, and y4 of one by the other way:

    pCTAVR = y1 y2          CVR = (1 - y2) y4 + y2 y3          pCTCVR = y1 CVR

Each has a network of its own, and embeddings are shared. The losses are those of pCTR, pCTAVR and
pCTCVR.

What differs: further tasks may stand beside these three. The CVR is made as a logit, so that what
is added to a task's logit, such as the effect of a place, can be added here too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional as F

from streaming.errors import ConfigError
from trainers.models import RANKING, register
from trainers.models.esmm import ESMM
from trainers.models.parts.ranker import RARE
from trainers.tasks import Task


@register("esm2", RANKING)
class ESM2(ESMM):
    """`predict` reads whatever its `fields` are."""

    @dataclass(frozen=True)
    class Config(ESMM.Config):
        """To the task `buy` two ways lead, with the task `action` or without it."""

        tasks: Mapping[str, Task] = field(
            default_factory=lambda: {
                "click": Task(),
                "cart": Task(after="click"),
                "buy": Task(after="click"),
            }
        )
        action: str = "cart"
        buy: str = "buy"

        def __post_init__(self) -> None:
            super().__post_init__()
            for option, name in (("action", self.action), ("buy", self.buy)):
                if name not in self.tasks:
                    known = ", ".join(self.tasks)
                    raise ConfigError(f"{option} = {name!r} is not a task; these are {known}")
                if not self.tasks[name].is_binary:
                    raise ConfigError(f"{option} = {name!r} is a value, and must be binary")
            after = [self.tasks[name].after for name in (self.action, self.buy)]
            if after[0] != after[1] or self.action == self.buy:
                raise ConfigError(
                    f"action = {self.action!r} and buy = {self.buy!r} must be two tasks that come"
                    f" after the same one, and come after {after[0]!r} and {after[1]!r}"
                )

    def __init__(self, config: Config) -> None:
        super().__init__(config, [RARE])
        names = list(config.tasks)
        self._action, self._buy = names.index(config.action), names.index(config.buy)

    def outputs(self, base: Tensor) -> Tensor:
        *tasks, other_way = super().outputs(base).unbind(1)
        tasks[self._buy] = decomposed(tasks[self._action], tasks[self._buy], other_way)
        return torch.stack(tasks, 1)


def decomposed(action: Tensor, after_action: Tensor, other_way: Tensor) -> Tensor:
    """The logit (n,) of `(1 - y2) y4 + y2 y3`, by the logits of y2, y3 and y4, each (n,).

    >>> y2, y3, y4 = torch.tensor([[0.2], [0.5], [0.1]]).logit()
    >>> decomposed(y2, y3, y4).sigmoid()
    tensor([0.1800])
    """
    did, did_not = F.logsigmoid(action), F.logsigmoid(-action)
    bought = torch.logaddexp(did_not + F.logsigmoid(other_way), did + F.logsigmoid(after_action))
    not_bought = torch.logaddexp(
        did_not + F.logsigmoid(-other_way), did + F.logsigmoid(-after_action)
    )
    return bought - not_bought
