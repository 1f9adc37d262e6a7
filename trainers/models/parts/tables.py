"""The tables of a model."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from trainers.table import EmbeddingTable, TableConfig


def tables(
    config: TableConfig, width: int, seed: int, *names: str, zero: Collection[str] = ()
) -> dict[str, EmbeddingTable]:
    """A table of each name, alike but for those whose rows are born zero."""
    return {
        name: EmbeddingTable(
            replace(
                config,
                name=name,
                width=width,
                birth_scale=0.0 if name in zero else config.birth_scale,
                seed=seed,
            )
        )
        for name in names
    }
