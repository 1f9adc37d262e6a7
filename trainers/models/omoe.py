"""OMoE: experts that all tasks share, and one gate that says for all of them which count.

Jacobs et al., *Adaptive Mixtures of Local Experts*, Neural Computation 1991; under this name the
baseline of Ma et al., KDD 2018. Of a pair x, the concatenated vectors of its fields:

    f(x) = sum_i softmax(W x)_i  expert_i(x)          y_k = tower_k(f(x))

What differs: nothing from `mmoe` but the gate.
"""

from __future__ import annotations

from trainers.models import RANKING, register
from trainers.models.mmoe import MMoE


@register("omoe", RANKING)
class OMoE(MMoE):
    """`predict` reads whatever its `fields` are."""

    def __init__(self, config: MMoE.Config) -> None:
        super().__init__(config, gates=1)
