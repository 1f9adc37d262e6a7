"""ESM2: where purchases are rare, an action before them says more than they do.

Wen et al. (SIGIR 2020) compare with ESMM on JD's data, by the AUC of conversion over all that is
shown, and of purchases.

Here: the planted world with few purchases; an action, of which half are carts, precedes most of
them. The AUC of buying once clicked, and of buying, over all pairs of the last fifth, by the
world's own probabilities. `esmm_cart` is ESMM with the cart as a third task that purchases do not
depend on: it finds nearly as much, so what helps is the cart, and how a purchase is made of it
hardly.

Who buys it tells better; who would buy once they have clicked only just not surely (-.0003 to
.0050). With a purchase that counts 30 in place of 100, so that ESMM is slow to learn it, it is
ahead by .017 (.010 to .024).
"""

from __future__ import annotations

from collections.abc import Mapping

from benchmarks._claims import Claim, Report
from benchmarks._conversions import SEEDS, compared


def measure(seed: int, report: Report) -> Mapping[str, float]:  # noqa: ARG001
    """The AUC of each."""
    return compared(["esm2", "esmm", "esmm_cart"], seed)


CLAIMS = (
    Claim(
        "over_esmm",
        "the way past the cart tells better who would buy than ESMM",
        measure, "esm2", "esmm", seeds=SEEDS, reproduces=False,
    ),
    Claim("purchases", "and who buys", measure, "esm2_ctcvr", "esmm_ctcvr", seeds=SEEDS),
    Claim(
        "over_task",
        "and better than the cart as a task of its own",
        measure, "esm2", "esmm_cart", seeds=SEEDS, reproduces=False,
    ),
)  # fmt: skip
