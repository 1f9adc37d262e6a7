"""Calibration on the stream: what is served is nearer to what comes about, in every scenario.

A ranker that learns the clicks of the planted world from a fifth of the negatives, test then train.
In the middle of the stream the world shifts: from then on two of three clicks among `deals`, and
one of three among `similar`, do not come about any more. Each step's predictions are held against
its labels as they are, and as curves make them that were fitted to the steps before. After the
shift, each with a minus, so that more is better:

* off: |log(predicted / observed)|, a mean over scenarios and windows of 20 steps (of 512 samples);
* ece: the expected calibration error in 20 bins of equal weight, a mean over scenarios;
* log loss.

The log loss is hardly smaller: the scenarios that are far off are the small ones, and the model
mends itself soon. What is learnt by a loss of lists is no probability at all; calibrated it is one,
but three seeds do not make sure that it is as good a one as that of a ranker by the log loss.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from benchmarks._claims import FRESH, Claim, Report
from benchmarks._impressions import FIELDS, Impressions, Setting, impressions, predicted
from benchmarks._streams import seeded
from streaming.log import Record
from streaming.samples import decode_samples, encode_samples
from streaming.sources.chance import Floats
from trainers.calibration import CalibrationConfig, Calibrators
from trainers.trainer import Trainer, TrainerConfig

_GONE = {"deals": 2 / 3, "similar": 1 / 3}
_KEPT = 0.2
_WINDOW = 20  # steps
_CONFIGS = {
    "none": CalibrationConfig("none"),
    "platt": CalibrationConfig("platt"),
    "isotonic": CalibrationConfig("isotonic"),
}


def measure(seed: int, report: Report) -> Mapping[str, float]:
    """What is served of the same predictions, with each kind of curve; pointwise and of lists."""
    found = {}
    for name, loss in (("", "binary"), ("lists ", "list_mle")):
        steps, shift = served(seed, _CONFIGS, loss)
        for figure, value in figures(steps, shift).items():
            found[name + figure] = value
            report(f"    {name}{figure}: {value:.4f}")
    return found


def served(
    seed: int, configs: Mapping[str, CalibrationConfig], loss: str = "binary"
) -> tuple[list[Floats], int]:
    """Of each step (n, columns): labels, weights, numbers of scenarios, what each config would
    have served; and the step in which the world shifts.
    """
    given = shifted(impressions(seed, Setting(keep_negatives=_KEPT)), seed)
    options = {
        "tasks": {"click": {"loss": loss}},
        "fields": FIELDS,
        "table": {"optimiser": {"learning_rate": 0.1}},
    }
    trainer = Trainer(seeded(TrainerConfig(model="mmoe", options=options), seed), "benchmark")
    calibrators = {how: Calibrators(["click"], config) for how, config in configs.items()}
    steps = []
    for record in given.records:
        read = trainer.family.read(decode_samples(record)).samples
        if read is not None:
            shown = trainer.family.describe(read)
            made, label = predicted(trainer, shown.pairs)["click"], shown.labels["click"]
            weight = 1.0 / np.where(label == 0, shown.rates, 1.0)
            codes = shown.pairs.users.scenarios[shown.pairs.user_of]
            columns = [label, weight, codes]
            for one in calibrators.values():
                columns.append(one.curves().calibrated("click", made, codes))
                one.observe("click", made, label, weight, codes)
            steps.append(np.stack(columns, 1)[~np.isnan(label)].astype(np.float64))
        trainer.on_batch([record])
    return steps, len(given.records) // 2


def shifted(given: Impressions, seed: int) -> Impressions:
    """From the middle on some clicks come to nothing, and of those as many are left out as else."""
    rng = np.random.default_rng(seed)
    middle = len(given.records) // 2
    changed = [_without_clicks(record, rng) for record in given.records[middle:]]
    return replace(given, records=[*given.records[:middle], *changed])


def _without_clicks(record: Record, rng: np.random.Generator) -> Record:
    rows = decode_samples(record)
    shares = [_GONE.get(name, 0.0) for name in rows["scenario"].to_pylist()]
    clicked = pc.equal(rows["label_click"], 1.0).fill_null(fill_value=False)
    gone = clicked.to_numpy(zero_copy_only=False) & (rng.random(rows.num_rows) < shares)
    click = pc.if_else(pa.array(gone), pa.scalar(0.0, pa.float32()), rows["label_click"])
    place = rows.schema.get_field_index("label_click")
    rows = rows.set_column(place, rows.schema.field(place), click)
    left = ~gone | (rng.random(rows.num_rows) < _KEPT)
    return record._replace(value=encode_samples(rows.filter(pa.array(left))).value)


def figures(steps: list[Floats], shift: int) -> dict[str, float]:
    """Of each config `off`, `log_loss` and `ece`, after the shift."""
    windows = [
        np.concatenate(steps[begin : begin + _WINDOW])
        for begin in range(shift, len(steps) - _WINDOW + 1, _WINDOW)
    ]
    label, weight, where, *made = np.concatenate(windows).T
    scenarios = np.unique(where)
    found = {}
    for number, (how, p) in enumerate(zip(_CONFIGS, made, strict=True)):
        ratios = [
            _ratio(one[one[:, 2] == scenario], 3 + number)
            for one in windows
            for scenario in scenarios
        ]
        sure = np.where(label == 1, p, 1 - p).clip(1e-7, 1 - 1e-7)
        found[f"off {how}"] = -float(np.mean(np.abs(np.log(ratios))))
        found[f"log loss {how}"] = float(np.average(np.log(sure), weights=weight))
        here = [where == scenario for scenario in scenarios]
        found[f"ece {how}"] = -float(np.mean([_ece(p[h], label[h], weight[h]) for h in here]))
    return found


def _ratio(rows: Floats, column: int) -> float:
    """Predicted over observed; half a click is added to both, so that none is no infinity."""
    label, weight, p = rows[:, 0], rows[:, 1], rows[:, column]
    return float((weight @ p + 0.5) / (weight @ label + 0.5))


def _ece(p: Floats, label: Floats, weight: Floats, bins: int = 20) -> float:
    """The expected calibration error (Naeini et al., AAAI 2015): how far the mean prediction of a
    bin is from its share of positives, a mean over bins.
    """
    order = np.argsort(p, kind="stable")
    share = np.cumsum(weight[order]) / weight.sum()
    at = np.minimum((share * bins).astype(np.int64), bins - 1)
    off = np.bincount(at, (weight * (p - label))[order], bins)
    return float(np.abs(off).sum() / weight.sum())


CLAIMS = (
    *(
        Claim(
            f"{figure}_{how}",
            says.format(how),
            measure,
            f"{figure} {how}",
            f"{figure} none",
            seeds=FRESH,
        )
        for figure, says in (
            ("off", "scenarios are nearer to what comes about with {} curves"),
            ("ece", "the calibration error in scenarios is smaller with {} curves"),
        )
        for how in ("platt", "isotonic")
    ),
    Claim(
        "log_loss_isotonic",
        "the log loss is no larger with isotonic curves",
        measure,
        "log loss isotonic",
        "log loss none",
        margin=0.001,
        seeds=FRESH,
    ),
    Claim(
        "lists_ece_isotonic",
        "what is learnt from lists becomes a probability",
        measure,
        "lists ece isotonic",
        "lists ece none",
        seeds=FRESH,
    ),
    Claim(
        "lists_log_loss",
        "calibrated, what is learnt from lists has no larger log loss than what is not",
        measure,
        "lists log loss isotonic",
        "log loss isotonic",
        margin=0.002,
        reproduces=False,
        seeds=FRESH,
    ),
)
