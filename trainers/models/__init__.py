"""The model zoo: one file a system, registered by `@register("name")`.

`create(name, options)` makes a model from its registered class and its `Config`.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from torch import Tensor

from features.batch import Ids, Items, Users
from streaming.errors import ConfigError
from streaming.settings import fill
from trainers.softmax import Sampling
from trainers.table import EmbeddingTable

T = TypeVar("T")
_REGISTRY: dict[str, type[Any]] = {}


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
    vectors may have any length.
    """

    width: int
    temperature: float  # of the softmax over scores
    tables: Mapping[str, EmbeddingTable]
    describes: bool
    unit: bool

    def query(self, users: Users) -> Tensor:
        """(B, K, d): K interests of each user, of unit length if `unit`."""
        ...

    def items(self, items: Items) -> Tensor:
        """(N, d), of unit length if `unit`."""
        ...

    def loss(self, step: RetrievalStep) -> Tensor:
        """The scalar to make small."""
        ...


def register(name: str) -> Callable[[type[T]], type[T]]:
    """Makes a class known to recipes; it must have a `Config` dataclass as its only argument."""

    def add(cls: type[T]) -> type[T]:
        _REGISTRY[name] = cls
        return cls

    return add


def create(name: str, options: Mapping[str, Any]) -> Any:
    """The model of that name.

    Raises:
        ConfigError: as `find`.
    """
    cls, config = find(name, options)
    return cls(config)


def find(name: str, options: Mapping[str, Any]) -> tuple[Any, Any]:
    """The class of the model of that name, and its configuration.

    Raises:
        ConfigError: names the model or the option that is not known, or does not fit.
    """
    for module in pkgutil.iter_modules(__path__):
        importlib.import_module(f"{__name__}.{module.name}")
    if name not in _REGISTRY:
        raise ConfigError(f"model = {name!r}: known are {', '.join(sorted(_REGISTRY))}")
    cls = _REGISTRY[name]
    return cls, fill(cls.Config, options, "trainer.options")
