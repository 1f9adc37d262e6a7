"""Who and what is new: the sources of candidates, and how they are weighed against each other.

Every source tells of the items that it proposes what part of the user's actions to come it expects
on each: a *share*. Shares of several sources are pooled linearly, by how much is known behind each
of them. The model is asked twice: by the user's n actions, which counts as

    (n / model_trust) ** 2

and as if he had done nothing yet, which counts as 1 once it has learnt much: it knows what
everybody did first, and after one or two actions that says more than these. What is hot counts as
`hot_trust`. So what the user does takes over a little with every action, and there is no moment at
which another list is shown. It is the formula by which a hot list of few actions leans on a wider
one (`HotLists.shares`) and a new item's own vector on those of its neighbours
(`features.content.evidence`); for language models, Jelinek and Mercer's interpolation with the
weights of MacKay and Peto.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt

from features.batch import Ids, Jagged, Users
from features.catalog import Catalog
from features.content import evidence, handed_over, mean_vectors
from features.newcomers import Young
from features.popularity import HotLists, ListTrust, Shares
from serving.candidate_kernels import pool
from serving.index import Subset
from serving.replica import Asked, ServedModel, ServedRanker
from streaming.kernels import EMPTY
from trainers.versions import VersionInfo

Floats = NDArray[np.float64]
POPULAR, HOT, INTERESTS, NEW, CONTENT = "popular", "hot", "interests", "new", "content"
SEARCH = "search"
NOBODY = "nobody"  # where no source proposes an item that is to be ranked
MODEL, FIRST = "model", "first"  # opinions of each model: the sources have its own name
_LONG_KNOWN = 5  # times the trust: what is expected of anybody is 4% then, and not asked for
_NONE = np.empty(0, np.int64)
_REMEMBERED = 1_000  # kinds of people, or of likings


@dataclass(frozen=True)
class ColdStartConfig:
    """How candidates are found and weighed.

    After `model_trust` actions of a user the model believes in them as much as in what it expects
    of anybody, in which it believes by half after `first_trust` samples; hot lists, declared
    interests and found titles count as `hot_trust`, `interests_trust` and `search_trust` of that.
    `vector_trust` are the actions on a new item that its neighbours count as much as, if they are
    just like it. `lists` says how fast a hot list speaks for itself. The shares of new items are
    multiplied by `newcomers`: over 1 shows more of them than the model believes in. Every source
    proposes at most `candidates` items, the model as many as are asked for if that is more.
    `temperature` turns scores into shares where the version does not say with which one it was
    trained.
    """

    model_trust: PositiveFloat = 5.0
    first_trust: PositiveFloat = 50_000.0
    hot_trust: PositiveFloat = 1.0
    interests_trust: NonNegativeFloat = 1.0
    search_trust: NonNegativeFloat = 50.0
    vector_trust: PositiveFloat = 0.1
    lists: ListTrust = field(default_factory=ListTrust)
    newcomers: NonNegativeFloat = 2.0
    candidates: PositiveInt = 200
    temperature: PositiveFloat = 0.07


@dataclass(frozen=True, slots=True)
class Consulted:
    """A version that has a say in an answer: `part` of what all models together have.

    Its scores become shares by a softmax at `temperature`.
    """

    served: ServedModel
    part: float
    temperature: float
    _asked: list[Asked] = field(default_factory=list)

    def asked(self, users: Users, *, also_first: bool) -> list[Asked]:
        """What it makes of the user, and if that is wanted also what it expects of him as if he had
        done nothing yet. It is asked once, and for both at once.
        """
        # No `cached_property`: up to Python 3.11 the visits of all threads wait for its one lock.
        if not self._asked:
            self._asked.extend(self.served.ask(_twice(users) if also_first else users))
        return self._asked

    def softmax(self, asked: Asked, scores: NDArray[np.float32]) -> Floats:
        """Scores (n,) as shares of what the version expects of all its items."""
        total = asked.log_total(self.temperature)
        shares: Floats = np.exp(scores.astype(np.float64) / self.temperature - total)
        return shares


@dataclass(frozen=True)
class Visit:
    """One request: what is known of the user, and the versions that answer, by their models; those
    of which there is none yet are not there. The `ranker` is the version that says what is to be
    expected of candidates, if there is one.

    `count` items are wanted, and the `hidden` will not be shown, nor any that are not `allowed`;
    `interests` were declared, and `words` are searched for.
    """

    users: Users
    hidden: Ids
    interests: Sequence[str]
    count: int
    models: Mapping[str, Consulted] = field(default_factory=dict)
    allowed: Subset | None = None
    words: str | None = None
    ranker: ServedRanker | None = None

    @property
    def user(self) -> int:
        return int(self.users.ids[0])

    @property
    def known_actions(self) -> int:
        return len(self.users.history.values)

    @property
    def served(self) -> ServedModel | None:
        """The version that speaks for the answer: of the first model that has one."""
        return next((one.served for one in self.models.values()), None)


def _twice(user: Users) -> Users:
    """The user, and he as if he had done nothing yet."""
    return Users(
        np.repeat(user.ids, 2),
        _and_none(user.history),
        user.rewards,
        user.details,
        replace(user.searched, ids=_and_none(user.searched.ids)),
        replace(user.passed_over, ids=_and_none(user.passed_over.ids)),
        np.repeat(user.at_us, 2),
        np.repeat(user.scenarios, 2),
    )


def _and_none(lists: Jagged) -> Jagged:
    """The same lists, and an empty one behind them."""
    return Jagged(lists.values, np.append(lists.offsets, lists.offsets[-1]))


@dataclass(frozen=True, slots=True)
class Proposals:
    """What a source proposes: items (n,), distinct, with their shares (n,).

    `source` is one of a few names, for metrics. The shares are part of an `opinion`, which counts
    as much as `weight` actions of the user; sources that share one propose different items.
    """

    source: str
    items: Ids
    shares: Floats
    opinion: str
    weight: float


# None if it has nothing to say of this visit. It may propose what is hidden, if there is room for
# that: who answers leaves it out.
Source = Callable[[Visit], Proposals | None]


@dataclass(frozen=True, slots=True)
class Candidates:
    """What the sources propose together, best first: n items, their pooled shares (n,), and what
    each source contributes to them, (sources, n).
    """

    items: Ids
    shares: Floats
    names: Sequence[str]
    parts: Floats

    def __len__(self) -> int:
        return len(self.items)

    def source(self, place: int) -> str:
        """Who contributes most to an item."""
        return self.names[int(self.parts[:, place].argmax())]

    def contributions(self, place: int) -> dict[str, float]:
        """What each source contributes to an item, as far as it proposes it."""
        found: dict[str, float] = {}
        for name, part in zip(self.names, self.parts[:, place].tolist(), strict=True):
            if part:
                found[name] = found.get(name, 0.0) + part
        return found

    def where(self, places: Any) -> Candidates:
        """Those at these places, or where a mask (n,) says so."""
        return Candidates(
            self.items[places], self.shares[places], self.names, self.parts[:, places]
        )


def pooled(proposals: Sequence[Proposals], hidden: Ids = _NONE) -> Candidates:
    """Every proposed item that is not hidden, best first, with its pooled share. Of equal shares
    the smaller id comes first.

    >>> model = Proposals("two_tower", np.array([7, 8]), np.array([0.5, 0.2]), "model", 3.0)
    >>> hot = Proposals("popular", np.array([8, 9]), np.array([0.8, 0.1]), "hot", 1.0)
    >>> together = pooled([model, hot])
    >>> together.items, together.shares
    (array([7, 8, 9]), array([0.375, 0.35 , 0.025]))
    >>> together.source(1), together.contributions(1)
    ('popular', {'two_tower': 0.15000000000000002, 'popular': 0.2})
    """
    names = [one.source for one in proposals]
    if not proposals:
        return Candidates(np.empty(0, np.int64), np.empty(0), names, np.empty((0, 0)))
    total = sum({one.opinion: one.weight for one in proposals}.values())
    items, shares, parts = pool(
        np.concatenate([one.items for one in proposals]),
        np.concatenate([one.shares * (one.weight / total if total else 0.0) for one in proposals]),
        np.array([len(one.items) for one in proposals]),
        hidden,
    )
    return Candidates(items, shares, names, parts)


Proposed = tuple[str, Ids, Floats]  # a source, items, their shares
Expected = tuple[str, Asked, float]  # an opinion of a model, what it says, its weight
Expects = Callable[[Visit, Consulted], Expected | None]


def of_what_he_did(config: ColdStartConfig) -> Expects:
    """A model's opinion of a user who did something."""

    def expects(visit: Visit, model: Consulted) -> Expected | None:
        if not visit.known_actions:
            return None
        asked = model.asked(visit.users, also_first=_is_new(visit, config))[0]
        return MODEL, asked, (visit.known_actions / config.model_trust) ** 2

    return expects


def _is_new(visit: Visit, config: ColdStartConfig) -> bool:
    """Whether what is expected of anybody still counts."""
    return visit.known_actions <= _LONG_KNOWN * config.model_trust


def of_anybody(config: ColdStartConfig) -> Expects:
    """A model's opinion of who is new: it has learnt what everybody did first."""

    def expects(visit: Visit, model: Consulted) -> Expected | None:
        if not _is_new(visit, config):
            return None
        learnt = model.served.info.metrics.get("samples", 0.0)
        asked = model.asked(visit.users, also_first=True)[1]
        return FIRST, asked, learnt / (learnt + config.first_trust)

    return expects


class _OfModel:
    """A source that speaks for one opinion of a model."""

    def __init__(
        self, name: str, config: ColdStartConfig, new: NewVectors, expects: Expects
    ) -> None:
        self._name = name
        self._config = config
        self._new = new
        self._expects = expects

    def __call__(self, visit: Visit) -> Proposals | None:
        model = visit.models.get(self._name)
        expected = None if model is None else self._expects(visit, model)
        if model is None or expected is None:
            return None
        opinion, asked, weight = expected
        found = self._propose(visit, model, asked)
        if found is None:
            return None
        source, items, shares = found
        return Proposals(source, items, shares, f"{opinion} {self._name}", model.part * weight)

    def _propose(self, visit: Visit, model: Consulted, asked: Asked) -> Proposed | None:
        raise NotImplementedError


class FromModel(_OfModel):
    """The best items by the newest version's scores, as the softmax that it was trained with.

    Items that are new are left to `FromNew`.
    """

    def _propose(self, visit: Visit, model: Consulted, asked: Asked) -> Proposed:
        served = model.served
        hidden = np.concatenate([visit.hidden, self._new.get(served).items])
        count = max(self._config.candidates, visit.count)
        items, scores = served.best(asked, count, hidden, visit.allowed)
        return served.info.model, items, model.softmax(asked, scores)


@dataclass(frozen=True, slots=True)
class FirstVectors:
    """Items (n,) that are new, and the vectors (n, d) with which they are scored."""

    items: Ids
    vectors: NDArray[np.float32]


class NewVectors:
    """The vectors of new items in a version: made once for each, by who asks first."""

    def __init__(self, config: ColdStartConfig, catalog: Catalog) -> None:
        self._config = config
        self._catalog = catalog
        self._made: tuple[VersionInfo, Young, FirstVectors] | None = None

    def get(self, served: ServedModel) -> FirstVectors:
        made, young = self._made, self._catalog.young
        if made is None or made[0] is not served.info or made[1] is not young:
            made = served.info, young, self._make(served, young)
            self._made = made
        return made[2]

    def _make(self, served: ServedModel, young: Young) -> FirstVectors:
        learnt, known = served.vectors(young.items)
        theirs, there = served.vectors(young.neighbours.ravel())
        rows = np.where(there, np.arange(len(there)), EMPTY).reshape(young.neighbours.shape)
        first, similarity = mean_vectors(rows, young.similarity, theirs)
        # A mean is shorter than what it is made of, and so would be liked by nobody very much.
        lengths = np.linalg.norm(theirs, axis=1, keepdims=True)
        length, _ = mean_vectors(rows, young.similarity, lengths)
        first *= length / np.maximum(np.linalg.norm(first, axis=1, keepdims=True), 1e-9)
        actions = np.where(known, young.actions, 0)
        vectors = handed_over(
            first, learnt, evidence(actions, similarity, self._config.vector_trust)
        )
        alike = similarity > 0
        return FirstVectors(young.items[alike], vectors[alike])


class FromNew(_OfModel):
    """New items, scored by what they are like until enough is known of themselves.

    Such an item need not be in the version: it is one of what it is like.
    """

    def _propose(self, visit: Visit, model: Consulted, asked: Asked) -> Proposed | None:
        new = self._new.get(model.served)
        allowed = _only(new.items, visit.allowed)
        items, vectors = new.items[allowed], new.vectors[allowed]
        if not len(items):
            return None
        shares = self._config.newcomers * model.softmax(asked, asked.scores_of(vectors))
        return NEW, items, shares


class _Remembered:
    """The `count` largest shares by hot lists, kept until those change: many people are of one
    kind, and many like the same.
    """

    def __init__(self, catalog: Catalog, count: int) -> None:
        self._catalog = catalog
        self._count = count
        self._kept: tuple[HotLists, dict[tuple[str, Subset | None], Shares]] = catalog.hot, {}

    def get(self, key: object, allowed: Subset | None, make: Callable[[], Shares]) -> Shares:
        hot = self._catalog.hot
        if self._kept[0] is not hot:
            self._kept = hot, {}
        kept, name = self._kept[1], (repr(key), allowed)
        found = kept.get(name)
        if found is None:
            items, shares = make()
            there = _only(items, allowed)
            items, shares = items[there], shares[there]
            best = np.argsort(-shares, kind="stable")[: self._count]
            found = items[best], shares[best]
            if len(kept) < _REMEMBERED:
                kept[name] = found
        return found


def _only(items: Ids, allowed: Subset | None) -> NDArray[np.bool_]:
    """Which of the items (n,) may be shown."""
    return np.ones(len(items), np.bool_) if allowed is None else allowed.holds(items)


class FromHot:
    """What is hot now with people of the user's kind, or with everyone if that is not known."""

    def __init__(self, config: ColdStartConfig, catalog: Catalog) -> None:
        self._config = config
        self._catalog = catalog
        self._shares = _Remembered(catalog, config.candidates)

    def __call__(self, visit: Visit) -> Proposals | None:
        cells = self._catalog.cells(visit.user)
        items, shares = self._shares.get(
            cells, visit.allowed, lambda: self._catalog.hot_for(cells, self._config.lists)
        )
        if not len(items):
            return None
        source = HOT if len(cells) > 1 else POPULAR
        return Proposals(source, items, shares, HOT, self._config.hot_trust)


class FromInterests:
    """What is hot in, or at least is of, what the user said to like at sign-up."""

    def __init__(self, config: ColdStartConfig, catalog: Catalog) -> None:
        self._config = config
        self._catalog = catalog
        self._shares = _Remembered(catalog, config.candidates)

    def __call__(self, visit: Visit) -> Proposals | None:
        said = visit.interests
        if not said:
            return None
        items, shares = self._shares.get(
            said,
            visit.allowed,
            lambda: self._catalog.of_interest(said, self._config.lists, self._config.candidates),
        )
        if not len(items):
            return None
        return Proposals(INTERESTS, items, shares, INTERESTS, self._config.interests_trust)


class FromSearch:
    """Items whose titles have the words that are searched for, in the order of the catalog; the
    share of the n-th is in proportion to 1 / n (Zipf).
    """

    def __init__(self, config: ColdStartConfig, catalog: Catalog) -> None:
        self._config = config
        self._catalog = catalog

    def __call__(self, visit: Visit) -> Proposals | None:
        if not visit.words:
            return None
        items = self._catalog.found(visit.words, self._config.candidates)
        items = items[_only(items, visit.allowed)]
        if not len(items):
            return None
        shares = 1.0 / np.arange(1, len(items) + 1)
        return Proposals(SEARCH, items, shares / shares.sum(), SEARCH, self._config.search_trust)


def all_sources(
    config: ColdStartConfig, catalog: Catalog, models: Sequence[str]
) -> dict[str, Source]:
    """All of them, by the names by which an answer says that it does without one; of the first of
    the `models` without its name.
    """
    sources: dict[str, Source] = {}
    for place, name in enumerate(models):
        new, of = NewVectors(config, catalog), f":{name}" if place else ""
        known, anybody = of_what_he_did(config), of_anybody(config)
        sources |= {
            f"model{of}": FromModel(name, config, new, known),
            f"model_new{of}": FromNew(name, config, new, known),
            f"first{of}": FromModel(name, config, new, anybody),
            f"first_new{of}": FromNew(name, config, new, anybody),
        }
    return {
        **sources,
        "hot": FromHot(config, catalog),
        "interests": FromInterests(config, catalog),
        "search": FromSearch(config, catalog),
    }
