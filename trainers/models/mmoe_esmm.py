"""MMoE with ESMM: experts and gates say what tasks share, and products how one follows another.

Ma et al., *Entire Space Multi-Task Model: An Effective Approach for Estimating Post-Click
Conversion Rate*, SIGIR 2018, over the network of Ma et al., KDD 2018 (`mmoe`). Of a pair x:

    y_k = sigmoid(tower_k(sum_i softmax(W_k x)_i expert_i(x)))          pCTCVR = y_click * y_buy

Both answer another question, so they can be had together: what the click knows, the purchase may
use by experts, and not by embeddings alone.

What differs: any number of tasks, of which each may come after another (`trainers.tasks.Task`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from trainers.models import RANKING, register
from trainers.models.mmoe import MMoE
from trainers.tasks import Task


@register("mmoe_esmm", RANKING)
class MMoEESMM(MMoE):
    """`predict` reads whatever its `fields` are."""

    @dataclass(frozen=True)
    class Config(MMoE.Config):
        """As that of `mmoe`, in the entire space."""

        tasks: Mapping[str, Task] = field(
            default_factory=lambda: {"click": Task(), "buy": Task(after="click")}
        )
        space: Literal["entire"] = "entire"
