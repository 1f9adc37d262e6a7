"""Tasks: what a ranker is to predict of a pair of user and item, and how that is learnt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import reduce
from typing import Literal

import numpy as np
import torch
from pydantic import NonNegativeFloat, PositiveFloat
from torch import Tensor

from features.batch import Ids
from streaming.errors import ConfigError
from trainers.losses import huber, list_mle, list_net, pairwise_logistic, squared_error

# Over which pairs a task that comes after another is learnt: see `Task`.
Space = Literal["shown", "entire", "after"]
_LEAST = 1e-7  # a probability that is surer counts as this sure in the loss
_OF_LISTS = {"pairwise": pairwise_logistic, "list_mle": list_mle, "list_net": list_net}


@dataclass(frozen=True)
class Task:
    """Something that may come of showing an item: a label of samples by its name.

    A `binary` one is 0 or 1 and predicted as a probability, that of a graded label is learnt by
    the log loss too; one by `squared` or `huber` loss is a value. One by a loss of lists
    (`pairwise`, `list_mle`, `list_net` of `trainers.losses`) is learnt by the order within a
    request alone: what is predicted lies between 0 and 1 and is no probability until it is
    calibrated. It can only come `after` another label, or after being shown. `weight` multiplies
    its loss.

    `also` are other labels and their weights, of a binary one: where such a label is positive, that
    is a positive of this task too, which counts so much. A click that was bought then counts more
    than another, and what is predicted is no longer how likely it is, but what serves both.

    In which space a ranker learns it: `shown`, every task of itself over all that is shown;
    `entire`, over all that is shown too, as the product of all that must come before it (ESMM);
    `after`, only where that has come, which is what is wrong with it: who clicks is no fair sample
    of who would buy. Predicted is always what is to be expected of showing the item.
    """

    loss: Literal["binary", "squared", "huber", "pairwise", "list_mle", "list_net"] = "binary"
    after: str | None = None
    weight: NonNegativeFloat = 1.0
    also: Mapping[str, PositiveFloat] = field(default_factory=dict)

    @property
    def is_binary(self) -> bool:
        """Whether it happens or does not, and is predicted by a number from 0 to 1."""
        return self.loss == "binary" or self.is_ordered

    @property
    def is_ordered(self) -> bool:
        """Whether it is learnt by the order within a request."""
        return self.loss in _OF_LISTS


def check_tasks(tasks: Mapping[str, Task], space: Space = "shown") -> None:
    """Whether they are in an order in which one may come after another.

    Raises:
        ConfigError: there is none, or one comes after what does not stand before it.
    """
    if not tasks:
        raise ConfigError("a ranker needs a task: tasks = { click = {} }")
    before: list[str] = []
    for name, task in tasks.items():
        if task.is_ordered and space != "shown":
            raise ConfigError(f"tasks.{name}.loss = {task.loss!r}: an order is no probability, so"
                              ' that it can only be learnt with space = "shown"')  # fmt: skip
        wrong = task.after is not None and task.after not in before
        if wrong and (space != "shown" or task.after in tasks):
            raise ConfigError(
                f"tasks.{name}.after = {task.after!r}: it comes after a task that stands before it;"
                f" these are {', '.join(before) or 'none'}"
            )
        if task.after in before and not tasks[str(task.after)].is_binary:
            raise ConfigError(f"tasks.{name}.after = {task.after!r}: that one is a value, which"
                              " does or does not happen is only what is binary")  # fmt: skip
        if task.also and task.loss != "binary":
            raise ConfigError(f"tasks.{name}.also: what counts as positive is asked of a binary"
                              f" task, and this one is {task.loss}")  # fmt: skip
        before.append(name)


def roots(tasks: Mapping[str, Task]) -> list[str]:
    """The labels that come after nothing else but being shown, whether they are tasks or not."""
    first = [name for name, task in tasks.items() if task.after is None]
    others = [task.after for task in tasks.values() if task.after and task.after not in tasks]
    return list(dict.fromkeys([*first, *others]))


def labels_read(tasks: Mapping[str, Task]) -> list[str]:
    """The labels of samples that tasks are learnt from."""
    also = [name for task in tasks.values() for name in task.also]
    return list(dict.fromkeys([*tasks, *roots(tasks), *also]))


def expected(
    tasks: Mapping[str, Task], outputs: Tensor, space: Space, seen: Tensor | None = None
) -> dict[str, Tensor]:
    """What is to be expected of showing a pair (n,), for each task, by a network's `outputs`
    (n, K) in their order; `seen` (n,) is the probability that it is noticed at all.
    """
    found: dict[str, Tensor] = {}
    for name, task, output in zip(tasks, tasks.values(), outputs.unbind(1), strict=True):
        made = output.sigmoid() if task.is_binary else output
        if space != "shown" and task.after is not None:
            made = found[task.after] * made
        elif seen is not None and not task.is_ordered:
            made = seen * made
        found[name] = made
    return found


def sampled(probability: Tensor, something: Tensor, rates: Tensor) -> Tensor:
    """The probability (n,) of a label among samples, of which those that came to nothing are only
    the share `rates` (n,), where it is `probability` (n,) among all and that of anything at all is
    `something` (n,): `p / (s + (1 - s) r)`.

    With one task s is p, and this is the correction for down-sampled negatives the other way round
    (He et al., *Practical Lessons from Predicting Clicks on Ads at Facebook*, ADKDD 2014).

    >>> half = torch.tensor([0.5])
    >>> sampled(half, half, torch.tensor([0.25]))
    tensor([0.8000])
    """
    return probability / _kept(something, rates)


def _kept(something: Tensor, rates: Tensor) -> Tensor:
    """How likely each pair became a sample (n,)."""
    return (something + (1.0 - something) * rates).clamp_min(_LEAST)


def corrected(probability: Tensor, rates: Tensor) -> Tensor:
    """The probability (n,) among all, of what is `probability` (n,) among samples that have only
    the share `rates` (n,) of all negatives: `p / (p + (1 - p) / w)`.

    The other way round than `sampled`, for one task. Three advertisements of which 30, 20 and 20 in
    a hundred are clicked on, learnt with a third of the negatives: what they seem to be worth, at
    6, 8 and 3 a click, puts the second first; corrected they are in order again.

    >>> true, bids = torch.tensor([0.3, 0.2, 0.2]), torch.tensor([6.0, 8.0, 3.0])
    >>> learnt = sampled(true, true, torch.tensor(1 / 3))
    >>> print(learnt, (bids * learnt).round(decimals=2))
    tensor([0.5625, 0.4286, 0.4286]) tensor([3.3800, 3.4300, 1.2900])
    >>> found = corrected(learnt, torch.tensor(1 / 3))
    >>> print(found, bids * found)
    tensor([0.3000, 0.2000, 0.2000]) tensor([1.8000, 1.6000, 0.6000])
    """
    return probability / (probability + (1.0 - probability) / rates)


def log_loss(probability: Tensor, labels: Tensor, weights: Tensor | None = None) -> Tensor:
    """The mean log loss over the known labels (n,), NaN where not known; 0 if none is. `weights`
    (n,) multiply a row's loss, and never its count. Of several tasks (K, n) it is (K,).
    """
    known = ~labels.isnan()
    p = torch.where(known, probability, 0.5).clamp(_LEAST, 1.0 - _LEAST)
    likelihood = torch.lerp((1.0 - p).log(), p.log(), labels.nan_to_num(0.0))
    counts = known.to(p.dtype) if weights is None else torch.where(known, weights, 0.0)
    return -(counts * likelihood).sum(-1) / known.sum(-1).clamp_min(1)


def task_losses(
    tasks: Mapping[str, Task],
    predictions: Mapping[str, Tensor],
    labels: Mapping[str, Tensor],
    rates: Tensor,
    space: Space = "shown",
    groups: Ids | None = None,
) -> dict[str, Tensor]:
    """Of each task its loss, a scalar. Predictions (n,) are of all that is shown (`expected`);
    they are corrected for the negatives that were left out of the samples. Where nobody predicts
    how likely it is that anything comes, because what comes first is no task or only its order is
    learnt, each pair that was shown in vain counts for those that it stands for. `groups` (n,) are
    equal within a list.
    """
    first = [name for name in roots(tasks) if name in tasks and not tasks[name].is_ordered]
    kept = None  # of all samples all
    if not (rates == 1.0).all():
        kept = _kept(anything([predictions[name] for name in first]), rates)
    stands_for = alike = torch.ones_like(rates)
    if not first or not all(task.is_binary for task in tasks.values()):
        stands_for = torch.where(came_to_nothing(tasks, labels), 1.0 / rates, 1.0)
    losses: dict[str, Tensor] = {}
    binary: dict[str, tuple[Tensor, Tensor, Tensor]] = {}
    for name, task in tasks.items():
        made, told, counts = predictions[name], labels[name], alike if first else stands_for
        if task.also:
            told, weights = _with_others(task, told, labels)
            counts = weights * counts
        if task.is_ordered:
            losses[name] = list_loss(task, made, told, groups)
            continue
        if space == "after" and task.after is not None:  # of those to whom it came so far
            before = predictions[task.after]
            made = made / before.clamp_min(_LEAST)
            told = torch.where(labels[task.after] == 0.0, torch.nan, told)
        elif task.is_binary and kept is not None:
            made = made / kept
        if task.is_binary:
            binary[name] = made, told, counts
        else:
            loss = squared_error if task.loss == "squared" else huber
            losses[name] = loss(made, told, stands_for)
    if binary:  # of all in one go: what takes time is the number of operations
        found = log_loss(*(torch.stack(one) for one in zip(*binary.values(), strict=True)))
        losses |= zip(binary, found.unbind(), strict=True)
    return {name: losses[name] for name in tasks}


def list_loss(task: Task, made: Tensor, told: Tensor, groups: Ids | None) -> Tensor:
    """The loss of a task that is learnt by the order within `groups` (n,); of one if None."""
    groups = np.zeros(len(made), np.int64) if groups is None else groups
    order = np.argsort(groups, kind="stable")
    _, starts = np.unique(groups[order], return_index=True)
    offsets = torch.from_numpy(np.append(starts, len(order))).to(made.device)
    rows = torch.from_numpy(order).to(made.device)
    return _OF_LISTS[task.loss](made[rows].logit(_LEAST), told[rows], offsets)


def _with_others(task: Task, label: Tensor, labels: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Of a task its label, and how much that counts, both (n,), with what is `also` positive."""
    counts = (~label.isnan()).to(label.dtype)
    for name, weight in task.also.items():
        positive = labels[name] > 0.0
        label = torch.where(positive, 1.0, label)
        counts = counts + weight * positive
    return label, counts


def anything(probabilities: Sequence[Tensor]) -> Tensor:
    """The probability (n,) that any of these comes about, if they are independent; 1 of none."""
    if not probabilities:
        return torch.ones(())
    return 1.0 - reduce(torch.mul, [1.0 - p for p in probabilities])


def came_to_nothing(tasks: Mapping[str, Task], labels: Mapping[str, Tensor]) -> Tensor:
    """Which pairs (n,) were shown in vain: of such some may have been left out. What only did not
    come after something that did, such as no purchase after a click, was left out of nothing.
    """
    positive = torch.stack([label > 0.0 for label in labels.values()]).any(0)
    first = torch.stack([labels[name] == 0.0 for name in roots(tasks)]).any(0)
    return first & ~positive
