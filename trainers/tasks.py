"""Tasks: what a ranker is to predict of a pair of user and item, and how that is learnt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from pydantic import NonNegativeFloat
from torch import Tensor

from streaming.errors import ConfigError
from trainers.losses import huber, squared_error

# Over which pairs a task that comes after another is learnt: see `Task`.
Space = Literal["shown", "entire", "after"]
_LEAST = 1e-7  # a probability that is surer counts as this sure in the loss


@dataclass(frozen=True)
class Task:
    """Something that may come of showing an item: a label of samples by its name.

    A `binary` one is 0 or 1 and predicted as a probability, that of a graded label is learnt by
    the log loss too; one by `squared` or `huber` loss is a value. It can only come `after` another
    label, or after being shown. `weight` multiplies its loss.

    In which space a ranker learns it: `shown`, every task of itself over all that is shown;
    `entire`, over all that is shown too, as the product of all that must come before it (ESMM);
    `after`, only where that has come, which is what is wrong with it: who clicks is no fair sample
    of who would buy. Predicted is always what is to be expected of showing the item.
    """

    loss: Literal["binary", "squared", "huber"] = "binary"
    after: str | None = None
    weight: NonNegativeFloat = 1.0

    @property
    def is_binary(self) -> bool:
        return self.loss == "binary"


def check_tasks(tasks: Mapping[str, Task], space: Space = "shown") -> None:
    """Whether they are in an order in which one may come after another.

    Raises:
        ConfigError: there is none, or one comes after what does not stand before it.
    """
    if not tasks:
        raise ConfigError("a ranker needs a task: tasks = { click = {} }")
    before: list[str] = []
    for name, task in tasks.items():
        wrong = task.after is not None and task.after not in before
        if wrong and (space != "shown" or task.after in tasks):
            raise ConfigError(
                f"tasks.{name}.after = {task.after!r}: it comes after a task that stands before it;"
                f" these are {', '.join(before) or 'none'}"
            )
        if task.after in before and not tasks[str(task.after)].is_binary:
            raise ConfigError(f"tasks.{name}.after = {task.after!r}: that one is a value, which"
                              " does or does not happen is only what is binary")  # fmt: skip
        before.append(name)


def roots(tasks: Mapping[str, Task]) -> list[str]:
    """The labels that come after nothing else but being shown, whether they are tasks or not."""
    first = [name for name, task in tasks.items() if task.after is None]
    others = [task.after for task in tasks.values() if task.after and task.after not in tasks]
    return list(dict.fromkeys([*first, *others]))


def labels_read(tasks: Mapping[str, Task]) -> list[str]:
    """The labels of samples that tasks are learnt from."""
    return list(dict.fromkeys([*tasks, *roots(tasks)]))


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
        elif seen is not None:
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
    return probability / (something + (1.0 - something) * rates).clamp_min(_LEAST)


def log_loss(probability: Tensor, labels: Tensor) -> Tensor:
    """The mean log loss over the known labels (n,), NaN where not known; 0 if none is."""
    known = ~labels.isnan()
    p, y = probability[known].clamp(_LEAST, 1.0 - _LEAST), labels[known]
    losses = -(y * p.log() + (1.0 - y) * (1.0 - p).log())
    return losses.sum() / max(1, int(known.sum()))


def task_losses(
    tasks: Mapping[str, Task],
    predictions: Mapping[str, Tensor],
    labels: Mapping[str, Tensor],
    rates: Tensor,
    space: Space = "shown",
) -> dict[str, Tensor]:
    """Of each task its loss, a scalar. Predictions (n,) are of all that is shown (`expected`);
    they are corrected for the negatives that were left out of the samples.
    """
    something = anything([predictions[name] for name in roots(tasks) if name in predictions])
    nothing = came_to_nothing(tasks, labels)
    losses: dict[str, Tensor] = {}
    for name, task in tasks.items():
        made, told = predictions[name], labels[name]
        if space == "after" and task.after is not None:  # of those to whom it came so far
            before = predictions[task.after]
            made = made / before.clamp_min(_LEAST)
            told = torch.where(labels[task.after] == 0.0, torch.nan, told)
        elif task.is_binary:
            made = sampled(made, something, rates)
        if task.is_binary:
            losses[name] = log_loss(made, told)
        else:
            loss = squared_error if task.loss == "squared" else huber
            losses[name] = loss(made, told, torch.where(nothing, 1.0 / rates, 1.0))
    return losses


def anything(probabilities: Sequence[Tensor]) -> Tensor:
    """The probability (n,) that any of these comes about, if they are independent; 1 of none."""
    if not probabilities:
        return torch.ones(1)
    return 1.0 - torch.stack([1.0 - p for p in probabilities]).prod(0)


def came_to_nothing(tasks: Mapping[str, Task], labels: Mapping[str, Tensor]) -> Tensor:
    """Which pairs (n,) were shown in vain: of such some may have been left out. What only did not
    come after something that did, such as no purchase after a click, was left out of nothing.
    """
    positive = torch.stack([label > 0.0 for label in labels.values()]).any(0)
    first = torch.stack([labels[name] == 0.0 for name in roots(tasks)]).any(0)
    return first & ~positive
