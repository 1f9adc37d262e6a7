"""SDM: the gate finds more than the session alone, than what was before it alone, and than both
side by side.

Lv et al. (CIKM 2019) report it on Taobao and JD, offline. Here it is recall@50 among the whole
corpus, test-then-train, of the second half of the tests: the planted world, whose users have
several interests, and one in a session, with categories, brands and words as side information;
and whole histories of 114 users of Taobao with categories.

That the gate finds more than both side by side does not reproduce: in one pass it finds as much
(.4947 and .4955 in the world), and less with rows that learn four times as fast (.392 and .410 of
all tests, one seed). In Taobao's 10,000 events what was before a session is learnt too seldom to
say anything (.04 alone), and the gate finds no more than the session.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmarks._claims import Claim, Report
from benchmarks._streams import Learner, Stream, progressive, seeded, stream
from trainers.trainer import TrainerConfig

_WORLD = 130_000  # events
_REPRODUCE = {("world", "short"), ("world", "long"), ("taobao", "long")}


def _world(seed: int, report: Report) -> Mapping[str, float]:  # noqa: ARG001
    return _fusions(stream("world", _WORLD), seed, fields=("category", "brand", "words"))


def _taobao(seed: int, report: Report) -> Mapping[str, float]:  # noqa: ARG001
    return _fusions(stream("taobao-114"), seed, fields=("category",))


def _fusions(given: Stream, seed: int, **options: Any) -> dict[str, float]:
    figures = {}
    for fusion in ("gate", "short", "long", "concat"):
        config = seeded(TrainerConfig(model="sdm"), seed, fusion=fusion, **options)
        tested = progressive(given, Learner(config), share=0.5)
        figures[fusion] = tested.recall(50, tested.number > tested.number.max() // 2)
    return figures


CLAIMS = tuple(
    Claim(
        f"{where}_over_{baseline}",
        f"the gate finds more than {says}",
        measure,
        "gate",
        baseline,
        reproduces=(where, baseline) in _REPRODUCE,
    )
    for where, measure in (("world", _world), ("taobao", _taobao))
    for baseline, says in (
        ("short", "the session"),
        ("long", "what was before it"),
        ("concat", "both side by side"),
    )
)
