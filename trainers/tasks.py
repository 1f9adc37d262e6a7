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

_LEAST = 1e-7  # a probability that is surer counts as this sure in the loss


@dataclass(frozen=True)
class Task:
    """Something that may come of showing an item: a label of samples by its name.

    A `binary` one is 0 or 1 and predicted as a probability, that of a graded label is learnt by
    the log loss too; one by `squared` or `huber` loss is a value. It can only come `after` another
    task, or after being shown. `weight` multiplies its loss.
    """

    loss: Literal["binary", "squared", "huber"] = "binary"
    after: str | None = None
    weight: NonNegativeFloat = 1.0

    @property
    def is_binary(self) -> bool:
        return self.loss == "binary"


def check_tasks(tasks: Mapping[str, Task]) -> None:
    """Whether they are in an order in which one may come after another.

    Raises:
        ConfigError: there is none, or one comes after what does not stand before it.
    """
    if not tasks:
        raise ConfigError("a ranker needs a task: tasks = { click = {} }")
    before: list[str] = []
    for name, task in tasks.items():
        if task.after is not None and task.after not in before:
            raise ConfigError(
                f"tasks.{name}.after = {task.after!r}: it comes after a task that stands before it;"
                f" these are {', '.join(before) or 'none'}"
            )
        before.append(name)


def roots(tasks: Mapping[str, Task]) -> list[str]:
    """The tasks that come after nothing else but being shown."""
    return [name for name, task in tasks.items() if task.after is None]


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
) -> dict[str, Tensor]:
    """Of each task its loss, a scalar. Predictions (n,) are of all that is shown; probabilities are
    corrected for the negatives that were left out of the samples.
    """
    something = anything([predictions[name] for name in roots(tasks) if tasks[name].is_binary])
    losses: dict[str, Tensor] = {}
    for name, task in tasks.items():
        made, told = predictions[name], labels[name]
        if task.is_binary:
            losses[name] = log_loss(sampled(made, something, rates), told)
        else:
            losses[name] = (squared_error if task.loss == "squared" else huber)(made, told)
    return losses


def anything(probabilities: Sequence[Tensor]) -> Tensor:
    """The probability (n,) that any of these comes about, if they are independent; 1 of none."""
    if not probabilities:
        return torch.ones(1)
    return 1.0 - torch.stack([1.0 - p for p in probabilities]).prod(0)
