"""Tuning of fusion: the weights by which the fused order of what was shown earns the most.

The objective is the value-weighted NDCG of requests r, a share of the best there could be:

    sum_r sum_i v_i / log2(2 + rank_i)  over  the same in the order of the values

where v_i is what came of item i, in what it is worth, and rank_i how many items of its request the
fused scores put before it, ties counted half (Järvelin and Kekäläinen, *Cumulated gain-based
evaluation of IR techniques*, TOIS 2002). An item that came to nothing counts for as many as were
left out of the samples for it. A request weighs as much as there was to gain in it.

The weights are searched by the tree-structured Parzen estimator (Bergstra et al., *Algorithms for
Hyper-Parameter Optimization*, NeurIPS 2011).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import optuna
from numpy.typing import NDArray

from serving.fusion import Floats, FusionConfig, How, fused

Ids = NDArray[np.int64]
_RESAMPLED = 1_000
_POWERS = (0.25, 2.0)


@dataclass(frozen=True, slots=True)
class Gains:
    """What an order earns of each request, and the best that there is, both (m,)."""

    earned: Floats
    best: Floats

    @property
    def share(self) -> float:
        """The objective; 0 if there was nothing to gain."""
        return _share(self.earned.sum(), self.best.sum())

    def interval(self, over: Gains | None = None, seed: int = 0) -> tuple[float, float]:
        """The 95% interval of the objective, or of its lead over another order of the same
        requests, by the bootstrap over requests (Efron and Tibshirani, *An Introduction to the
        Bootstrap*, 1993).
        """
        rng = np.random.default_rng(seed)
        earned = self.earned - (0.0 if over is None else over.earned)
        chosen = (rng.integers(0, len(earned), len(earned)) for _ in range(_RESAMPLED))
        found = [_share(earned[one].sum(), self.best[one].sum()) for one in chosen]
        low, high = np.quantile(found, (0.025, 0.975))
        return float(low), float(high)


@dataclass(frozen=True, slots=True)
class Tuned:
    """The best fusion that was found, its objective, and after how many trials."""

    fusion: FusionConfig
    objective: float
    trials: int


class Requests:
    """n items that were shown in m requests (`groups`, (n,)), what came of them in what it is
    worth (`values`, (n,)), and for how many each stands (`weights`, (n,)).
    """

    def __init__(self, values: Floats, groups: Ids, weights: Floats) -> None:
        self._values, self._weights = values, weights
        ids, self._groups = np.unique(groups, return_inverse=True)
        self._count = len(ids)
        self._best = self._earned(values)

    def gains(self, scores: Floats) -> Gains:
        """What the order by these scores (n,) earns."""
        return Gains(self._earned(scores), self._best)

    def _earned(self, scores: Floats) -> Floats:
        if not self._count:
            return np.zeros(0)
        order = np.lexsort((-scores, self._groups))
        groups, ordered = self._groups[order], scores[order]
        values, weights = self._values[order], self._weights[order]
        before = np.append(0.0, np.cumsum(weights))
        first_of_group = np.searchsorted(groups, np.arange(self._count))
        tied = (groups[1:] == groups[:-1]) & (ordered[1:] == ordered[:-1])
        starts = np.flatnonzero(np.append(True, ~tied))
        run = np.cumsum(np.append(True, ~tied)) - 1
        ends = np.append(starts[1:], len(order))
        ahead = before[starts][run] - before[first_of_group][groups]
        beside = (before[ends] - before[starts])[run] - weights
        gained = weights * values / np.log2(2.0 + ahead + beside / 2.0)
        return np.bincount(groups, gained, minlength=self._count).astype(np.float64)


def tune(  # noqa: PLR0913 - what is given, and how long to search
    predictions: Mapping[str, Floats],
    requests: Requests,
    how: How = "product",
    *,
    trials: int = 200,
    within_s: float | None = None,
    seed: int = 0,
    told: Callable[[int, float], None] = lambda _trials, _best: None,
) -> Tuned:
    """The fusion of these predictions (n,) of each task that earns the most of the requests.

    Each task alone, and all by the same weight, are tried first. `told` hears after each trial how
    many there were, and the best objective.
    """
    tasks, done = list(predictions), 0

    def objective(trial: optuna.Trial) -> float:
        fusion = _fusion(_suggested(trial, tasks, how), predictions, how)
        return requests.gains(fused(predictions, fusion)).share

    def after(study: optuna.Study, trial: optuna.trial.FrozenTrial) -> None:
        nonlocal done
        done = trial.number + 1
        told(done, study.best_value)

    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        sampler = optuna.samplers.TPESampler(seed=seed)
        study = optuna.create_study(direction="maximize", sampler=sampler)
        for weights in _first(tasks):
            powers = {f"power {task}": 1.0 for task in tasks if how == "power"}
            study.enqueue_trial({**weights, **powers})
        study.optimize(objective, n_trials=trials, timeout=within_s, callbacks=[after])
    finally:
        optuna.logging.set_verbosity(verbosity)
    return Tuned(_fusion(study.best_params, predictions, how), study.best_value, done)


def _first(tasks: list[str]) -> list[dict[str, float]]:
    alone = [{other: float(other == task) for other in tasks} for task in tasks]
    return [*alone, dict.fromkeys(tasks, 1.0)]


def _suggested(trial: optuna.Trial, tasks: list[str], how: How) -> dict[str, float]:
    found = {task: trial.suggest_float(task, 0.0, 1.0) for task in tasks}
    if how == "power":
        found |= {f"power {one}": trial.suggest_float(f"power {one}", *_POWERS) for one in tasks}
    return found


def _fusion(found: Mapping[str, Any], predictions: Mapping[str, Floats], how: How) -> FusionConfig:
    """Weights up to 1. In a sum they are of tasks as if all were of the same size, on average."""
    powers = {one: _short(found[f"power {one}"]) for one in predictions if how == "power"}
    weights = {task: float(found[task]) for task in predictions}
    if how != "product":
        sizes = {t: float(np.mean(np.abs(p) ** powers.get(t, 1.0))) for t, p in predictions.items()}
        weights = {task: weight / max(sizes[task], 1e-12) for task, weight in weights.items()}
    largest = max(weights.values()) or 1.0
    kept = {task: _short(weight / largest) for task, weight in weights.items()}
    kept = {task: weight for task, weight in kept.items() if weight} or dict.fromkeys(kept, 1.0)
    return FusionConfig(how, kept, {task: powers[task] for task in kept if powers})


def _short(number: float) -> float:
    """Four digits say enough."""
    return float(f"{number:.4g}")


def _share(earned: float, best: float) -> float:
    return float(earned / best) if best > 0 else 0.0
