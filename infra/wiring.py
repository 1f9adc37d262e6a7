"""Which step runs for which group, on which topics, from which state."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from infra.home import Home
from infra.recipe import Recipe
from streaming.log import EVENTS, SAMPLES, Log
from streaming.loop import Loop

# Each builder imports what only its own process needs: importing Feast takes seconds.


def joiner_loop(recipe: Recipe, home: Home, log: Log) -> Loop[Any]:
    """`events` -> `samples` and `dead-letters`."""
    from features.behaviour import Behaviour
    from streaming.joiner import Joiner

    return Loop(
        log,
        "joiner",
        [EVENTS],
        lambda state: Joiner(
            recipe.joiner, recipe.events, Behaviour(recipe.behaviour, state), state
        ),
        home.cuts("joiner"),
        config=recipe.loop,
    )


def aggregator_loop(recipe: Recipe, home: Home, log: Log) -> Loop[Any]:
    """`events` -> the feature store."""
    from features.aggregator import Aggregator
    from features.store import FeastStore

    store = FeastStore(home.features)
    store.apply()
    return Loop(
        log,
        "aggregator",
        [EVENTS],
        lambda state: Aggregator(recipe.aggregator, recipe.events, recipe.behaviour, state),
        home.cuts("aggregator"),
        execute=store.push,
        redo=store.keep_back,
        flush=store.flush,
        config=recipe.loop,
    )


def trainer_loop(recipe: Recipe, home: Home, log: Log) -> Loop[Any]:
    """`samples` -> versions."""
    import torch

    from trainers.trainer import Trainer
    from trainers.versions import VersionStore

    # One thread: the other processes need the other cores, and the bits of a result must not
    # depend on how many there are.
    torch.set_num_threads(1)
    lineage = f"{datetime.now(UTC):%Y%m%dT%H%M%S}-{secrets.token_hex(2)}"
    store = VersionStore(home.versions)
    return Loop(
        log,
        "trainer",
        [SAMPLES],
        lambda state: Trainer(recipe.trainer, lineage, state),
        home.cuts("trainer"),
        execute=store.execute,
        config=recipe.trainer_loop,
    )


LOOPS: dict[str, Callable[[Recipe, Home, Log], Loop[Any]]] = {
    "joiner": joiner_loop,
    "aggregator": aggregator_loop,
    "trainer": trainer_loop,
}
