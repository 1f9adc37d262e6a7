"""MGDSPR: answers keep to what is searched for, a vector of zeros keeps a past out that has nothing
to do with it, and the temperature decides.

Li et al. (KDD 2021) report recall@1000 and the share of relevant products among those found, on
Taobao's search. Here it is the planted world, where the topics of words and items are known:
recall@50 among the whole corpus, test-then-train, of what was taken from lists of the searched
scenario in the second half of the stream, and the share of the best ten items that are of the topic
searched for. `apart` are the tests where nothing in the user's history is of that topic. The
baseline of relevance is the two-tower model, which does not know the search.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks._claims import Claim, Report
from benchmarks._streams import Data, Learner, Stream, join, progressive, seeded
from features.batch import Ids, Users
from features.sessions import GAP_US
from features.text import word_ids
from infra.recipe import load_recipe
from streaming.event_columns import scenario_codes
from streaming.ids import stable_ids
from streaming.sources.descriptions import WORDS
from streaming.sources.world import World, WorldConfig
from trainers.models.parts.searches import Searches

_EVENTS = 150_000
_DATA = Data("world", token_fields=("category", "brand"), text_fields=("title",))
_SEARCH = int(scenario_codes(["search"])[0])
_NOWHERE = -1


class _Topics:
    """The topic of each word and item of a world."""

    def __init__(self, world: World, items: int = 10_000) -> None:
        words = word_ids(world.descriptions.words, 1).values
        self._words = _sorted(words, np.arange(len(words)) // WORDS)
        numbers = np.arange(items)
        ids = stable_ids(f"i{number}" for number in numbers)
        self._items = _sorted(ids, world.population.item_topics(numbers)[0])

    def of_items(self, items: Ids) -> Ids:
        return _found(self._items, items)

    def searched_for(self, users: Users) -> Ids:
        """(B,), NOWHERE for who has not just searched."""
        searches = Searches.of(users.searched)
        searches = searches.where(searches.newest())
        owners = searches.owners()
        fresh = users.at_us[owners] - searches.at_us < GAP_US
        found = np.full(len(users.ids), _NOWHERE)
        first = searches.words.values[searches.words.offsets[:-1]]
        found[owners[fresh]] = _found(self._words, first[fresh])
        return found


class _Searched(Learner):
    """Remembers of each search that it is asked about what its answer is worth."""

    def __init__(self, topics: _Topics, *args: Any) -> None:
        super().__init__(*args)
        self._topics = topics
        self.relevant: list[NDArray[np.float64]] = []

    def scores(self, users: Users) -> NDArray[np.float32]:
        found = super().scores(users)
        topics = self._topics.searched_for(users)
        rows = np.flatnonzero((topics != _NOWHERE) & (users.scenarios == _SEARCH))
        best = torch.from_numpy(found[rows]).topk(10).indices.numpy()
        of_best = self._topics.of_items(self.trainer.family.corpus.ids[best.ravel()]).reshape(
            best.shape
        )
        self.relevant.append((of_best == topics[rows, None]).mean(1))
        return found


@cache
def _stream(seed: int) -> tuple[Stream, _Topics]:
    world = World(WorldConfig(seed=seed))
    return Stream("world", _DATA, join(world, _DATA, events=_EVENTS)), _Topics(world)


def _measure(seed: int, report: Report) -> Mapping[str, float]:  # noqa: ARG001
    given, topics = _stream(seed)
    apart = _apart(given, topics)
    recipe = load_recipe("world").trainer
    table = recipe.options["table"]
    figures: dict[str, float] = {}
    for name, model, options in (
        ("mgdspr", "mgdspr", {}),
        ("without_zeros", "mgdspr", {"zero": False}),
        ("untempered", "mgdspr", {"temperature": 1.0}),
        ("two_tower", "two_tower", {"history": 5}),
    ):
        config = replace(recipe, model=model, options={"table": table, **options})
        learner = _Searched(topics, seeded(config, seed))
        tested = progressive(given, learner, share=0.5)
        late = tested.number >= len(given.steps) // 2
        keys = zip(tested.user.tolist(), tested.item.tolist(), tested.at_us.tolist(), strict=True)
        searched = np.array([apart.get(key, _NOWHERE) for key in keys])
        relevant = np.concatenate(learner.relevant)
        figures |= {
            name: tested.recall(50, late & (searched != _NOWHERE)),
            f"{name}_apart": tested.recall(50, late & (searched == 1)),
            f"{name}_relevance": float(relevant[len(relevant) // 2 :].mean()),
        }
    return figures


def _apart(given: Stream, topics: _Topics) -> dict[tuple[int, int, int], int]:
    """By user, item and time of the samples of searches: whether the history is of other topics."""
    found = {}
    for step in given.steps:
        samples, users = step.samples, step.samples.users
        searched = topics.searched_for(users)
        rows = np.flatnonzero((searched != _NOWHERE) & (users.scenarios == _SEARCH))
        history, owners = users.history, users.history.owners()
        same = topics.of_items(history.values) == searched[owners]
        alike = np.bincount(owners[same], minlength=len(searched))
        for row in rows.tolist():
            key = (int(users.ids[row]), int(samples.item_ids[row]), int(samples.at_us[row]))
            found[key] = int(alike[row] == 0)
    return found


def _sorted(ids: Ids, values: Ids) -> tuple[Ids, Ids]:
    order = np.argsort(ids)
    return ids[order], values[order]


def _found(known: tuple[Ids, Ids], ids: Ids) -> Ids:
    """The value of each id; they are all known."""
    found: Ids = known[1][np.searchsorted(known[0], ids)]
    return found


CLAIMS = (
    Claim(
        "relevance", "more of the best ten are of the topic searched for",
        _measure, "mgdspr_relevance", "two_tower_relevance",
    ),
    Claim("search", "more of what searches lead to is found", _measure, "mgdspr", "two_tower"),
    Claim("temperature", "a low temperature finds more", _measure, "mgdspr", "untempered"),
    Claim(
        "zeros", "zeros to look at help where the past has nothing to do with the search",
        _measure, "mgdspr_apart", "without_zeros_apart",
    ),
    Claim(
        "zeros_relevance", "zeros to look at keep more of the best ten to the topic",
        _measure, "mgdspr_relevance", "without_zeros_relevance",
    ),
)  # fmt: skip
