"""What each system claims over its own baseline, with intervals: `headrace bench claims [SYSTEM]`.

A claim is a module of this package, called as the system, with

- a docstring: what is claimed and by whom, on which data, what differs, what was tried if it does
  not reproduce;
- `CLAIMS`, a sequence of `benchmarks._claims.Claim`.

`benchmarks._streams` has what they are made of: streams of samples, a model behind the real
trainer, and the loop that tests and then trains. A module that needs data that is not shipped is
skipped by name where HEADRACE_DATA does not have it, and what it promises is then not measured.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from benchmarks._claims import Claim, compare
from streaming.errors import ConfigError, SourceError

CLAIMS: Mapping[str, tuple[Claim, ...]] = {
    found.name: tuple(importlib.import_module(f"{__name__}.{found.name}").CLAIMS)
    for found in pkgutil.iter_modules(__path__)
}
PROMISES = {
    f"{system}.{claim.name}_low": (-claim.margin, float("inf"))
    for system, claims in CLAIMS.items()
    for claim in claims
    if claim.reproduces
}


@dataclass(frozen=True)
class Config:
    """Which system's claims; all if none is named."""

    system: str = ""


def run(report: Callable[[str], None], config: Config | None = None) -> dict[str, float]:
    """For each claim by how much it holds, on average, and its 95% interval.

    Raises:
        ConfigError: no such system claims anything.
    """
    torch.set_num_threads(1)
    system = (config or Config()).system
    if system and system not in CLAIMS:
        raise ConfigError(f"no claims of {system!r}; there are those of {', '.join(CLAIMS)}")
    figures: dict[str, float] = {}
    for name, claims in CLAIMS.items():
        if system in ("", name):
            try:
                found = compare(claims, report)
            except SourceError as error:
                report(f"skipped {name}: {error}")
                continue
            figures |= {f"{name}.{figure}": value for figure, value in found.items()}
    return figures
