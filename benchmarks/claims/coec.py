"""COEC: clicks over those that the places alone promise tell more of an item than its click rate.

Zhang and Jones, *Comparing Click Logs and Editorial Labels for Training Query Rewriting*, WWW 2007:
an item that stood at the top is clicked on for that.

`world`: items of the planted world in the order of COEC and of their click rates, against their
true mean relevance to those who were shown them, where a policy puts items in an order of their
own. Both with so much of a prior as is best for them.

`trivago`: the hotels of one half of the lists, at random, are scored; of the other half are asked
pairs of neighbours of which one was clicked on, those where it is the upper one counting as much as
those where it is the lower one, so that knowing the place is of no use. It does not reproduce: a
hotel is shown three times, of which neither tells much, and its usual place is the site's own
judgement of it, which COEC takes off. Priors of 0.5 to 8 clicks were tried.

`open_bandit`: items are scored by one half, against the clicks on the other half as far as it was
shown uniformly at random, by AUC. There is nothing to correct: places were drawn, all three are
clicked on alike (0.48%, 0.52%, 0.44%), and 287 clicks on 160 items are few. So COEC is only not to
be worse.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from benchmarks._claims import FRESH, Claim, Report
from benchmarks._impressions import WORLD, Setting, agreement, impressions, once, true
from features.coec import Coec, CoecConfig, CountedBaseline, CountedConfig, Shown
from streaming.event_columns import NONE, scenario_codes
from streaming.sources.chance import Floats, Ints
from streaming.sources.registry import open_source

_SETTING = Setting(replace(WORLD, days=12), promoted=1.0)
_STRENGTHS = (0.5, 2.0, 8.0)  # expected clicks of the prior
_AT_ONCE = 65_536


def world(seed: int, report: Report) -> Mapping[str, float]:
    """How well each orders the items by their true relevance."""
    given = impressions(seed, _SETTING)
    rows = once(given)
    ids, items = np.unique(rows["item_id"].to_numpy(), return_inverse=True)
    names, where = np.unique(rows["scenario"].to_numpy(zero_copy_only=False), return_inverse=True)
    clicked = rows["label_click"].to_numpy().astype(np.float64)
    context = scenario_codes(names.tolist())[where].astype(np.int64)
    shown = _shown(items, rows["position"].to_numpy(), clicked, context)
    relevance = np.bincount(items, true(given, rows).relevance) / np.bincount(items)
    one = np.zeros(len(ids), np.int64)
    return _best(shown, len(ids), lambda scores: agreement(scores, relevance, one), report)


def trivago(seed: int, report: Report) -> Mapping[str, float]:
    """Of how many pairs of neighbours the one that was clicked on is first."""
    items, requests, places, clicked, _ = _log("trivago")
    learnt = np.random.default_rng(seed).random(requests.max() + 1)[requests] < 0.5
    rest = np.flatnonzero(~learnt)
    rest = rest[np.lexsort((places[rest], requests[rest]))]
    upper, lower = rest[:-1], rest[1:]
    pairs = (requests[upper] == requests[lower]) & (clicked[upper] != clicked[lower])
    pairs &= places[lower] == places[upper] + 1
    pairs &= np.isin(items[upper], items[learnt]) & np.isin(items[lower], items[learnt])
    upper, lower = upper[pairs], lower[pairs]

    def quality(scores: Floats) -> float:
        ahead = np.sign(scores[items[upper]] - scores[items[lower]])
        first = clicked[upper] > 0
        return float(0.5 + (ahead[first].mean() - ahead[~first].mean()) / 4)

    shown = _shown(items[learnt], places[learnt], clicked[learnt])
    return _best(shown, int(items.max()) + 1, quality, report)


def bandit(seed: int, report: Report) -> Mapping[str, float]:
    """The AUC of the scores of items for clicks on what was shown uniformly at random."""
    items, _, places, clicked, attributes = _log("open-bandit")
    uniform = np.array(['"random"' in text for text in attributes])
    learnt = np.random.default_rng(seed).random(len(items)) < 0.5
    rest = ~learnt & uniform

    def quality(scores: Floats) -> float:
        found, positive = scores[items[rest]], clicked[rest] > 0
        won = np.sign(found[positive][:, None] - found[~positive])
        return float(0.5 + won.mean() / 2)

    shown = _shown(items[learnt], places[learnt], clicked[learnt])
    return _best(shown, int(items.max()) + 1, quality, report)


def _best(
    shown: Shown, items: int, quality: Callable[[Floats], float], report: Report
) -> dict[str, float]:
    """Of COEC and of click rates the quality of the scores (items,), with the best prior."""
    every = np.arange(items)
    clicks = np.bincount(shown.item_id, shown.clicked, items)
    count = np.bincount(shown.item_id, minlength=items)
    rate = shown.clicked.mean()
    found: dict[str, float] = {}
    for strength in _STRENGTHS:
        coec = Coec("items", CoecConfig(strength=strength), CountedBaseline("all", CountedConfig()))
        coec.update(shown)
        for name, scores in (
            ("coec", coec.get(every, 0)),
            ("rate", (clicks + strength) / (count + strength / rate)),
        ):
            made = quality(scores)
            report(f"    {name}, strength {strength:g}: {made:.4f}")
            found[name] = max(found.get(name, 0.0), made)
    return found


def _shown(items: Ints, places: Ints, clicked: Floats, context: Ints | None = None) -> Shown:
    nothing = np.zeros(len(items), np.int64)
    context = np.full(len(items), NONE) if context is None else context
    return Shown(items, places.astype(np.int64), clicked, nothing, context, nothing > 0)


@cache
def _log(source: str) -> tuple[Ints, Ints, Ints, Floats, list[str]]:
    """Of each impression the number of its item and of its request, its place, whether it was
    clicked on, and its attributes.
    """
    found = open_source(source)
    events = pa.concat_batches(
        [found.batch(at, _AT_ONCE) for at in range(0, found.total, _AT_ONCE)]
    )
    shown, clicks = (
        events.filter(pc.equal(events["kind"], kind)) for kind in ("impression", "click")
    )

    def named(rows: pa.RecordBatch) -> pa.Array:
        request = pc.fill_null(rows["request_id"].cast(pa.string()), "")
        return pc.binary_join_element_wise(request, rows["item_id"].cast(pa.string()), "/")

    clicked = pc.is_in(named(shown), value_set=named(clicks)).to_numpy(zero_copy_only=False)
    items, requests = (
        np.unique(shown[name].to_numpy(zero_copy_only=False).astype(str), return_inverse=True)[1]
        for name in ("item_id", "request_id")
    )
    places = shown["position"].to_numpy().astype(np.int64)
    return items, requests, places, clicked.astype(np.float64), shown["attributes"].to_pylist()


CLAIMS = (
    Claim(
        "world",
        "COEC orders items nearer to their true relevance than click rates do",
        world,
        ours="coec",
        baseline="rate",
        seeds=FRESH,
    ),
    Claim(
        "trivago",
        "of two neighbours in a list COEC knows better than click rates which is clicked on",
        trivago,
        ours="coec",
        baseline="rate",
        reproduces=False,
        seeds=FRESH,
    ),
    Claim(
        "open_bandit",
        "where places were drawn at random, COEC of items is no worse than their click rates",
        bandit,
        ours="coec",
        baseline="rate",
        margin=0.01,
        seeds=FRESH,
    ),
)
