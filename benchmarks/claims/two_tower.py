"""The correction of sampling bias: a softmax over the batch's own items finds more with it.

Yi et al., *Sampling-Bias-Corrected Neural Modeling for Large Corpus Item Recommendations*, RecSys
2019: an item that is taken often is often a negative of others, so that the plain softmax over a
batch scores it too low; taking off the logarithm of its estimated frequency mends that. They
compare both at several temperatures, on Wikipedia and at YouTube.

Here: the first 60,000 events of MovieLens-1M, test then train, recall@50 against the whole corpus
of what was liked, after the first quarter of the stream. As in the paper the batch's own items are
the only negatives, and each variant is taken at the temperature that is best for it. (With a
thousand uniform negatives, as in the recipe `movielens`, the correction changes little.)
"""

from __future__ import annotations

from collections.abc import Mapping

from benchmarks._claims import Claim, Report
from benchmarks._streams import Learner, progressive, seeded, stream
from trainers.negatives import NegativesConfig
from trainers.trainer import TrainerConfig

_EVENTS = 60_000
_TEMPERATURES = (0.04, 0.07, 0.12, 0.2)


def measure(seed: int, report: Report) -> Mapping[str, float]:
    """Recall@50 with and without the correction, each at its best temperature."""
    return {
        name: max(
            _recall(seed, temperature, report, corrected=corrected) for temperature in _TEMPERATURES
        )
        for name, corrected in (("corrected", True), ("plain", False))
    }


def _recall(seed: int, temperature: float, report: Report, *, corrected: bool) -> float:
    given = stream("ml-1m", _EVENTS)
    config = TrainerConfig(
        options={"history": 5, "table": {"optimiser": {"learning_rate": 0.5}}},
        negatives=NegativesConfig(uniform=0, corrected=corrected),
        dense_learning_rate=0.001,
    )
    learner = Learner(seeded(config, seed, temperature=temperature))
    tested = progressive(given, learner, share=0.3)
    found = tested.recall(50, tested.number >= len(given.steps) // 4)
    report(f"    {'corrected' if corrected else 'plain'}, temperature {temperature}: {found:.4f}")
    return found


CLAIMS = (
    Claim(
        "correction",
        "the corrected softmax finds more than the plain one",
        measure,
        ours="corrected",
        baseline="plain",
    ),
)
