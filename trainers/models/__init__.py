"""The model zoo: one file a system, registered by `@register("name")`.

`create(name, options)` makes a model from its registered class and its `Config`. A model may also
live in another installed package, which names its module among its entry points: see
docs/adding-a-model.md.
"""

from __future__ import annotations

import importlib
import pkgutil
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import Any, NamedTuple, Protocol, TypeVar

from torch import Tensor

from features.batch import Ids, Items, Users
from features.shown import Pairs
from streaming.errors import ConfigError
from streaming.settings import fill
from trainers.softmax import Sampling
from trainers.table import EmbeddingTable
from trainers.tasks import Task

T = TypeVar("T")
RETRIEVAL, RANKING = "retrieval", "ranking"  # the families
_REGISTRY: dict[str, type[Any]] = {}
_FAMILIES: dict[str, str] = {}
_ENTRY_POINTS = "headrace.models"
# "Who, *what*, where and when"
_PAPER = re.compile(
    r"([A-Z][\w-]+(?:(?:, | and |, and )[A-Z][\w-]+| et al\.)*), \*([^*]+)\*,? ([^.*]*\d{4})"
)


@dataclass(frozen=True, slots=True)
class RetrievalStep:
    """What a retriever learns from in one step; B samples, C candidates, each item once.

    `remembered` (R, d) are vectors of items of recent steps, as they stood then: candidates that
    cost no gradient, behind the others. `sampling` and `weights` (B,) are those of
    `trainers.softmax.sampled_softmax`, over C + R columns. `item_ids` (B,) are the samples' own
    items, and `drawn` (n,) the numbers of the candidates that were drawn uniformly from the corpus.
    All that a model draws it draws from `seed`, which is another one in every step: then the same
    stream is learnt to the same bits, also after a restart.
    """

    users: Users
    candidates: Items
    remembered: Tensor
    sampling: Sampling
    weights: Tensor
    item_ids: Ids
    drawn: Ids
    seed: int


class Retriever(Protocol):
    """A model that puts users and items into one space: score = dot product.

    It is a `torch.nn.Module`; its dense parameters are learnt by the trainer's optimiser, the
    rows of its `tables` by the tables themselves. One that `describes` is given what describes the
    items of histories (`Users.described`), in serving as in training. Of one that is not `unit`
    vectors may have any length. `reads` are the columns of samples that its answers or its loss
    depend on.
    """

    width: int
    temperature: float  # of the softmax over scores
    tables: Mapping[str, EmbeddingTable]
    describes: bool
    unit: bool
    reads: tuple[str, ...]

    def query(self, users: Users) -> Tensor:
        """(B, K, d): K interests of each user, of unit length if `unit`."""
        ...

    def items(self, items: Items) -> Tensor:
        """(N, d), of unit length if `unit`."""
        ...

    def loss(self, step: RetrievalStep) -> Tensor:
        """The scalar to make small."""
        ...


@dataclass(frozen=True, slots=True)
class RankingStep:
    """What a ranker learns from in one step: n pairs, and of each task what came of them (n,), NaN
    where that is not known. Of those that came to nothing the share `rates` (n,) is here; `groups`
    (n,) are equal for pairs that compete. All that a model draws it draws from `seed`.
    """

    pairs: Pairs
    labels: Mapping[str, Tensor]
    rates: Tensor
    groups: Ids
    seed: int


class Ranker(Protocol):
    """A model that says of a pair of user and item what is to be expected, for each of its tasks.

    It is a `torch.nn.Module` with `tables`, `describes` and `reads` as a `Retriever` has them.
    """

    tasks: Mapping[str, Task]
    tables: Mapping[str, EmbeddingTable]
    describes: bool
    reads: tuple[str, ...]
    reads_coec: bool  # of items how they do where they are shown: `trainers.item_response`

    def predict(self, pairs: Pairs) -> Mapping[str, Tensor]:
        """Of each task (n,): the probability of a label, or its value, if the pair is shown; at
        which place is not known yet, whatever `pairs.positions` say.
        """
        ...

    def loss(self, step: RankingStep) -> Tensor:
        """The scalar to make small."""
        ...


class About(NamedTuple):
    """What a model says of itself; each text is one line.

    `summary` and `paper` stand in the docstring of its module: the first sentence, and the first
    reference. `origin` is the module.
    """

    name: str
    family: str
    summary: str
    paper: str
    reads: tuple[str, ...]
    origin: str


def register(name: str, family: str = RETRIEVAL) -> Callable[[type[T]], type[T]]:
    """Makes a class known to recipes; it must have a `Config` dataclass as its only argument."""

    def add(cls: type[T]) -> type[T]:
        _REGISTRY[name] = cls
        _FAMILIES[name] = family
        return cls

    return add


def names() -> list[str]:
    """All models that a recipe can name, sorted.

    Raises:
        ConfigError: the module of another package cannot be imported.
    """
    _import_own()
    for point in entry_points(group=_ENTRY_POINTS):
        _import_other(point.name)
    return sorted(_REGISTRY)


def family_of(name: str) -> str:
    """Of which family the model of that name is: `RETRIEVAL`, `RANKING`.

    Raises:
        ConfigError: as `find`.
    """
    _class(name)
    return _FAMILIES.get(name, RETRIEVAL)


def about(name: str) -> About:
    """What the model of that name is.

    Raises:
        ConfigError: as `find`.
    """
    cls = _class(name)
    text = " ".join((sys.modules[cls.__module__].__doc__ or "").split())
    summary, _, rest = text.partition(". ")
    found = _PAPER.search(rest)
    paper = f"{found[1].strip()}, *{found[2]}*, {found[3]}" if found else ""
    reads = tuple(getattr(cls, "reads", ()))
    return About(name, _FAMILIES[name], summary.rstrip("."), paper, reads, cls.__module__)


def create(name: str, options: Mapping[str, Any]) -> Any:
    """The model of that name.

    Raises:
        ConfigError: as `find`.
    """
    cls, config = find(name, options)
    return cls(config)


def find(name: str, options: Mapping[str, Any], where: str = "trainer.options") -> tuple[Any, Any]:
    """The class of the model of that name, and its configuration; `where` in a recipe it stands.

    Raises:
        ConfigError: names the model or the option that is not known, or does not fit.
    """
    cls = _class(name)
    return cls, fill(cls.Config, options, where)


def _class(name: str) -> Any:
    _import_own()
    if name not in _REGISTRY:
        _import_other(name)
    if name not in _REGISTRY:
        raise ConfigError(f"model = {name!r}: known are {', '.join(names())}")
    return _REGISTRY[name]


def _import_own() -> None:
    for module in pkgutil.iter_modules(__path__):
        importlib.import_module(f"{__name__}.{module.name}")


def _import_other(name: str) -> None:
    """Imports the module that another package names for a model."""
    for point in entry_points(group=_ENTRY_POINTS, name=name):
        try:
            point.load()
        except Exception as error:  # whatever stands in that module
            raise ConfigError(
                f"model = {name!r}: its module {point.value} cannot be imported: {error}"
            ) from error
