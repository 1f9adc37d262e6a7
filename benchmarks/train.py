"""A two-tower step against the peers' own: samples a second, at four batch sizes.

User id and the mean of 20 history items against item id and an attribute, towers 128-64, 64
numbers a row, in-batch softmax with correction, two threads; `benchmarks/_peers` has every
contender's code. All have a row for every id before the clock starts; Headrace alone looks ids up
as well. Each runs in a process of its own, they take turns, and every ratio is the median over the
rounds of one run. `gemm` is the machine's own limit: the step's matrix products in float32 and
nothing else. A peer whose library is not installed (`make peers`) is left out.
"""

from __future__ import annotations

from collections.abc import Callable
from statistics import median

from benchmarks._peers import ask, median_ratio

BATCHES = (256, 1024, 4096, 8192)
OWN = ("headrace", "headrace_fp32", "headrace_untuned")
PEERS = ("torchrec", "torch", "torch_tuned", "fbgemm_tuned", "fbgemm_jemalloc", "gemm")
ROUNDS = 3
SECONDS = 3.0
PROMISES = {
    "over_torchrec_4096": (4.0, 1e9),
    "over_torch_4096": (3.0, 1e9),
    "over_fbgemm_tuned_4096": (1.6, 1e9),
    "over_fbgemm_jemalloc_4096": (1.6, 1e9),
    "over_gemm_4096": (0.6, 1e9),
}


def run(report: Callable[[str], None]) -> dict[str, float]:
    """`headrace_N` in samples a second at batch N, and `over_PEER_N`, how many times a peer's."""
    figures: dict[str, float] = {}
    for batch in BATCHES:
        rates: dict[str, list[float]] = {}
        for _ in range(ROUNDS):
            for name in (*OWN, *PEERS):
                answer = ask(name, batch, SECONDS)
                if answer is not None:
                    rates.setdefault(name, []).append(answer["samples_per_s"])
        told = ", ".join(f"{name} {median(rate):,.0f}" for name, rate in rates.items())
        report(f"batch {batch}: {told}")
        ours = rates.pop("headrace")
        figures[f"headrace_{batch}"] = median(ours)
        for name, theirs in rates.items():
            figures[f"over_{name}_{batch}"] = median_ratio(ours, theirs)
    return figures
