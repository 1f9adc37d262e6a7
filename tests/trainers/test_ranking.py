"""The family of rankers in the trainer: reading, testing, calibrating, lists; cuts and versions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch import Tensor

from features.batch import Items, Jagged
from features.definitions import SAMPLE_FEATURES
from features.shown import Pairs
from streaming.artefact import Artefact, read_artefact, write_artefact
from streaming.errors import ConfigError
from streaming.event_columns import field_codes, scenario_codes
from streaming.log import DEAD_LETTERS, SAMPLES, Record
from streaming.samples import decode_samples, encode_samples, sample_schema
from trainers.arrays import table_arrays
from trainers.calibration import ALL, CalibrationConfig, Curves
from trainers.exchange import Exchange
from trainers.families import Moment
from trainers.gate import Gate, GateConfig
from trainers.losses import pairwise_logistic
from trainers.models import RankingStep, create
from trainers.peers import Alone, Ranks
from trainers.ranking import Ranking, RankingConfig
from trainers.tasks import Task, task_losses
from trainers.trainer import Trainer, TrainerConfig
from trainers.versions import Version

LABELS = ("click", "buy")
NOW_US = 1_700_000_000_000_000
Rows = Sequence[Mapping[str, Any]]
SameState = Callable[[Artefact, Artefact], None]
BUYS_TOO = {"click": Task(), "buy": Task(after="click")}


def record(rows: Rows, offset: int = 0) -> Record:
    """Samples that name only what matters to the test."""
    defaults = {"kind": "view", "at": NOW_US, "logged_us": NOW_US + offset}
    filled = [{**defaults, **row} for row in rows]
    batch = pa.RecordBatch.from_pylist(filled, schema=sample_schema(LABELS, SAMPLE_FEATURES))
    output = encode_samples(batch)
    return Record(SAMPLES, 0, offset, output.key, output.value, NOW_US + offset)


def shown(item: int, click: float | None, **more: Any) -> dict[str, Any]:
    """An impression: clicked on, or in vain, so that nothing else came of it either."""
    told = {"label_click": click, **({"label_buy": 0.0} if click == 0.0 else {})}
    return {"user_id": 1, "item_id": item, "request_id": 7, "scenario": "home", **told, **more}


# Until something was, nobody knows how often anything comes to something.
IN_VAIN = shown(1, 0.0, request_id=-1)


def declared(item: int, *tokens: int) -> dict[str, Any]:
    return {"item_id": item, "kind": "item", "item_tokens": list(tokens)}


class Believer:
    """Believes of every pair what it is told to, and remembers what it was to learn."""

    describes = False
    tables: Mapping[str, Any] = {}
    reads = ()

    def __init__(
        self,
        believed: float = 0.5,
        tasks: Mapping[str, Task] | None = None,
        reads_coec: bool = False,
    ) -> None:
        self.tasks = tasks or BUYS_TOO
        self.reads_coec = reads_coec
        self.believed: float | Sequence[float] = believed
        self.learnt: list[RankingStep] = []

    def predict(self, pairs: Pairs) -> dict[str, Tensor]:
        believed = torch.tensor(self.believed).expand(len(pairs))
        return {name: believed / (1 + n) for n, name in enumerate(self.tasks)}

    def loss(self, step: RankingStep) -> Tensor:
        self.learnt.append(step)
        return torch.zeros(())


def made(model: Believer, how: Any = "isotonic", **config: Any) -> Ranking:
    return Ranking(
        model, RankingConfig(CalibrationConfig(how), **config), Alone(), Gate(GateConfig())
    )


def take(ranking: Ranking, rows: Rows) -> None:
    """One step, as a trainer takes it."""
    mine = ranking.read(decoded(rows))
    samples = ranking.declare([mine.told], mine.samples)
    if samples is not None:
        ranking.test(samples, Moment(0, 0))
        ranking.note([mine.told])
        ranking.loss(samples, 0)
    ranking.refresh([mine.told])


def decoded(rows: Rows) -> pa.RecordBatch:
    return decode_samples(record(rows))


def metrics(ranking: Ranking) -> dict[str, float]:
    return ranking.metrics(Moment(0, 0))


# Testing


def test_what_was_left_out_counts_where_it_came_to_nothing() -> None:
    ranking = made(Believer())
    half = {"negative_rate": 0.5}
    take(
        ranking,
        [
            shown(1, 1.0, **half),
            shown(2, 0.0, **half),
            shown(3, 0.0, **half),
            {**shown(1, None, **half), "label_buy": 0.0},  # a click without a purchase
            {**shown(1, None, **half), "label_buy": 1.0},
        ],
    )
    found = metrics(ranking)
    # Of clicks, 1 of 1 + 2 + 2 that were shown; of purchases, 1 of 2 + 2 + 1 + 1.
    assert found["calibration[click]"] == pytest.approx(0.5 * 5)
    assert found["calibration[buy]"] == pytest.approx(0.25 * 6)
    assert found["log_loss[click]"] == pytest.approx(np.log(2))
    assert found["log_loss[buy]"] == pytest.approx(-(np.log(0.25) + 5 * np.log(0.75)) / 6)
    assert found["auc[click]"] == 0.5


def test_within_requests_and_over_all() -> None:
    model = Believer()
    ranking = made(model)
    rows: list[Mapping[str, Any]] = []
    believed: list[float] = []
    # Right in every request, and wrong over all: who clicks more was given less.
    for request, (high, low, click) in enumerate([(0.4, 0.3, 1.0), (0.9, 0.8, 0.0)]):
        for probability, label in ((high, 1.0), (low, 0.0), (low, click)):
            rows.append(shown(len(rows), label, request_id=request))
            believed.append(probability)
    model.believed = believed
    take(ranking, rows)
    found = metrics(ranking)
    assert found["gauc[click]"] == pytest.approx((0.75 + 1.0) / 2)
    assert found["auc[click]"] == pytest.approx(4.5 / 9)


def test_what_is_learnt_is_tested_before(one_step: TrainerConfig) -> None:
    rows = [shown(item, float(item < 4)) for item in range(12)]
    trainer = Trainer(one_step, "a")
    samples = trainer.family.read(decoded(rows)).samples
    with torch.no_grad():
        before = trainer.model.predict(samples.pairs)["click"].numpy()
    trainer.on_batch([record(rows)])
    with torch.no_grad():
        after = trainer.model.predict(samples.pairs)["click"].numpy()
    assert trainer.metrics["calibration[click]"] == pytest.approx(before.sum() / 4, rel=1e-5)
    assert not np.allclose(before, after)


# Calibrating


def some_came(share: float, scenario: str | None, count: int = 50) -> Rows:
    came = count * share
    return [shown(item, float(item < came), scenario=scenario) for item in range(count)]


@pytest.mark.parametrize("how", ["platt", "isotonic"])
def test_what_is_served_is_what_comes_about_in_every_scenario(how: str) -> None:
    ranking = made(Believer(0.5), how)
    for _ in range(60):
        take(ranking, [*some_came(0.1, "home"), *some_came(0.3, "deals"), *some_came(0.2, None)])
    found = metrics(ranking)
    for labels, ratio in {"click": 2.5, "click,home": 5.0, "click,deals": 0.5 / 0.3}.items():
        assert found[f"recent_calibration[{labels}]"] == pytest.approx(ratio, rel=0.01)
    for labels in ("click", "click,home", "click,deals"):
        assert found[f"recent_served_calibration[{labels}]"] == pytest.approx(1.0, abs=0.1)
    assert found["served_log_loss[click]"] < found["log_loss[click]"]
    assert found["served_normalised_entropy[click]"] < 1.1 < found["normalised_entropy[click]"]
    curves = Curves.from_table(ranking.shards(-1)["calibration"])
    home, deals = scenario_codes(["home", "deals"]).tolist()
    served = [curves.calibrated("click", np.array([0.5]), s)[0] for s in (ALL, home, deals)]
    assert served == pytest.approx([0.2, 0.1, 0.3], rel=0.1)


def test_the_first_predictions_are_served_as_they_are() -> None:
    ranking = made(Believer(0.25))
    take(ranking, some_came(0.5, "home"))
    found = metrics(ranking)
    assert found["served_calibration[click]"] == found["calibration[click]"] == pytest.approx(0.5)
    take(ranking, some_came(0.5, "home"))
    found = metrics(ranking)
    assert 0.5 == pytest.approx(found["calibration[click]"]) != found["served_calibration[click]"]


def test_without_calibration_nothing_more_is_told() -> None:
    ranking = made(Believer(), "none")
    take(ranking, some_came(0.5, "home"))
    assert not [name for name in metrics(ranking) if "served" in name]
    assert ranking.shards(-1)["calibration"].num_rows == 0


def test_a_click_is_learnt_with_what_was_shown_in_vain_beside_it() -> None:
    model = Believer()
    ranking = made(model)
    for row in (shown(5, 1.0), IN_VAIN, shown(5, 1.0)):
        take(ranking, [row])
    assert [step.labels["click"].tolist() for step in model.learnt] == [[0.0, 1.0], [1.0]]


def test_with_no_room_to_wait_everything_is_learnt_as_it_comes() -> None:
    model = Believer()
    ranking = made(model, waiting=0)
    for row in (shown(5, 1.0), IN_VAIN):
        take(ranking, [row])
    assert [step.labels["click"].tolist() for step in model.learnt] == [[1.0], [0.0]]


def test_every_sample_counts_as_much_however_long_a_step_is() -> None:
    ranking = made(Believer())
    sizes = [100, 1, 100, 1, 50]
    weights = [ranking.weight(size) for size in sizes]
    each = [weight / size for size, weight in zip(sizes, weights, strict=True)]
    assert weights[0] == 1.0
    assert each == pytest.approx([0.01] * 5, rel=0.05)


# Lists


ORDERED = {"click": Task("pairwise"), "buy": Task(after="click")}


def labels_of(step: RankingStep) -> dict[str, list[Any]]:
    return {
        name: [None if np.isnan(y) else y for y in label.tolist()]
        for name, label in step.labels.items()
    }


def test_a_click_is_compared_with_what_came_to_nothing_later() -> None:
    model = Believer(tasks=ORDERED)
    ranking = made(model)
    take(ranking, [declared(5, 50, 51), declared(6, 60)])
    take(ranking, [shown(5, 1.0, position=3), shown(8, 1.0, request_id=8)])
    take(ranking, [shown(6, 0.0, position=0), shown(9, 0.0, request_id=9, user_id=2)])
    (step,) = model.learnt
    assert step.pairs.items.ids.tolist() == [6, 9, 5, 8]
    assert step.pairs.items.tokens.values.tolist() == [60, 50, 51]
    assert step.pairs.positions.tolist() == [0, -1, 3, -1]
    assert step.groups.tolist() == [7, 9, 7, 8]
    assert labels_of(step) == {"click": [0.0, 0.0, 1.0, 1.0], "buy": [0.0, 0.0, None, None]}


@pytest.mark.parametrize("loss", ["pairwise", "list_mle", "list_net"])
def test_lists_may_lie_one_among_another(loss: Any) -> None:
    made, label = torch.rand(12), torch.tensor([1.0, 0, torch.nan] * 4)
    groups = np.array([7, 3] * 6)
    order = torch.from_numpy(np.argsort(groups, kind="stable"))
    tasks = {"click": Task(loss)}
    found, sorted_ = (
        task_losses(tasks, {"click": p}, {"click": y}, torch.ones(12), groups=g)["click"]
        for p, y, g in ((made, label, groups), (made[order], label[order], np.sort(groups)))
    )
    assert found == sorted_ > 0
    if loss == "pairwise":
        scores = made[order].logit()
        offsets = torch.tensor([0, 6, 12])
        torch.testing.assert_close(found, pairwise_logistic(scores, label[order], offsets))


def test_beside_an_order_what_is_there_counts_for_what_was_left_out() -> None:
    made = {"click": torch.full((2,), 0.9), "buy": torch.full((2,), 0.25)}
    labels = {"click": torch.zeros(2), "buy": torch.zeros(2)}
    found = task_losses(ORDERED, made, labels, torch.full((2,), 0.1))
    assert found["click"] == 0.0
    assert float(found["buy"]) == pytest.approx(-10 * np.log(0.75))


@pytest.mark.parametrize("space", ["entire", "after"])
def test_an_order_can_only_be_learnt_of_what_is_shown(space: str) -> None:
    with pytest.raises(ConfigError, match=r"tasks\.click\.loss = 'list_mle'.*space = \"shown\""):
        create("mmoe", {"tasks": {"click": {"loss": "list_mle"}}, "space": space})


@pytest.mark.parametrize("loss", ["pairwise", "list_mle", "list_net"])
def test_the_order_within_requests_is_learnt(loss: str, one_step: TrainerConfig) -> None:
    """Items 0 to 3 are clicked on wherever they stand beside others; clicks leave first."""
    options = {**one_step.options, "tasks": {"click": {"loss": loss}}}
    recent = CalibrationConfig(half_life=300)
    fast = replace(one_step, options=options, calibration=recent, dense_learning_rate=0.01)
    trainer = Trainer(fast, "a")
    rng = np.random.default_rng(0)
    for step in range(60):
        requests, at = 16 * step + np.arange(16), NOW_US + step
        clicks = [shown(int(rng.integers(4)), 1.0, request_id=int(r), at=at) for r in requests]
        vain = [shown(int(rng.integers(4, 12)), 0.0, request_id=int(r), at=at) for r in requests]
        trainer.on_batch([record(clicks, 2 * step), record(vain, 2 * step + 1)])
    found = trainer.metrics
    assert found["recent_gauc[click]"] > 0.9
    assert found["recent_served_log_loss[click]"] < found["recent_log_loss[click]"]


# How items do where they are shown


def of_coec(items: Items) -> list[int | None]:
    """Of each item the value of the field, None if it has none."""
    values = items.of_field(int(field_codes(["coec"])[0]))
    return [None if not one.size else int(one[0]) for one in np.split(*_ends(values))]


def _ends(lists: Jagged) -> tuple[Any, Any]:
    return lists.values, lists.offsets[1:-1]


def test_a_step_is_learnt_with_how_items_did_before_it() -> None:
    model = Believer(reads_coec=True)
    ranking = made(model, waiting=0)
    take(ranking, [declared(5, 50)])
    for _ in range(2):
        take(ranking, [shown(5, 1.0, position=0), shown(6, 0.0, position=0)])
    first, second = (step.pairs.items for step in model.learnt)
    assert of_coec(first) == [None, None]
    well, badly = of_coec(second)
    assert None is not well != badly
    assert second.tokens.values.tolist() == [50, well, badly]
    both = np.array([5, 6])
    well, badly = of_coec(ranking.book.items(both))
    take(ranking, [declared(5, 51), declared(6, 61)])  # described anew, they do as before
    assert ranking.book.items(both).tokens.values.tolist() == [51, well, 61, badly]


def test_a_version_tells_of_the_items_that_do_otherwise_than_they_did() -> None:
    ranking = made(Believer(reads_coec=True), waiting=0)
    take(ranking, [shown(item, float(item == 1), position=0) for item in (1, 2, 3)])
    told = ranking.clock
    assert ranking.shards(-1)["items"]["id"].to_pylist() == [1, 2, 3]
    take(ranking, [shown(2, 1.0, position=0)])
    assert ranking.shards(told)["items"]["id"].to_pylist() == [2]


def test_without_that_field_nothing_is_counted() -> None:
    ranking = made(Believer(), waiting=0)
    take(ranking, [shown(1, 1.0, position=0)])
    assert not len(ranking.book)
    assert "coec_responses" not in ranking.common_state(-1)


# In the trainer


@pytest.fixture(scope="session")
def one_step() -> TrainerConfig:
    """A ranker that takes a step in a few milliseconds."""
    options = {
        "tasks": {"click": {}, "buy": {"after": "click"}},
        "fields": ("user_id", "history", "scenario", "item_id"),
        "width": 4,
        "expert": 8,
        "tower": 4,
        "table": {"optimiser": {"learning_rate": 0.1}},
    }
    return TrainerConfig(model="mmoe", options=options, publish_every_s=0.1, snapshot_every=3)


@pytest.fixture(scope="session")
def lists(one_step: TrainerConfig) -> TrainerConfig:
    """One that also learns an order."""
    tasks = {"click": {"loss": "list_mle"}, "buy": {"after": "click"}}
    return replace(one_step, options={**one_step.options, "tasks": tasks})


@pytest.fixture(scope="session")
def responses(one_step: TrainerConfig) -> TrainerConfig:
    """One that also reads how items do where they are shown."""
    fields = (*one_step.options["fields"], "coec")
    return replace(one_step, options={**one_step.options, "fields": fields})


@pytest.fixture(scope="module")
def steps() -> list[Record]:
    """Clicks, and what came to nothing, of requests that begin in one step and end in another."""
    rng = np.random.default_rng(1)
    records = []
    for step in range(14):
        rows: list[Mapping[str, Any]] = [declared(100 + step, step)]
        for _ in range(20):
            request = int(rng.integers(max(0, step - 2), step + 1))
            more = {"request_id": request, "user_id": request, "negative_rate": 0.5}
            more["position"] = len(rows) % 6
            where = str(rng.choice(["home", "deals"]))
            click = float(rng.random() < 0.3)
            more["at"] = NOW_US + request + int(2 * click)  # so that clicks have to wait
            rows.append(shown(int(rng.integers(40)), click, scenario=where, **more))
        rows.append({**shown(3, None, request_id=step), "label_buy": float(step % 2)})
        records.append(record(rows, step))
    return records


def on_disk(path: Path, state: Artefact) -> Artefact:
    write_artefact(path, state.meta, state.shards)
    return read_artefact(path)


@pytest.mark.parametrize("config", ["one_step", "lists", "responses"])
def test_a_cut_goes_on_bit_for_bit(
    config: str,
    request: pytest.FixtureRequest,
    steps: list[Record],
    tmp_path: Path,
    assert_same_state: SameState,
) -> None:
    settings: TrainerConfig = request.getfixturevalue(config)
    unbroken, broken = Trainer(settings, "a"), Trainer(settings, "a")
    for number, one in enumerate(steps):
        unbroken.on_batch([one])
        broken.on_batch([one])
        if number in (3, 8):
            broken = Trainer(settings, "a", on_disk(tmp_path / str(number), broken.snapshot()))
    assert_same_state(broken.snapshot(), unbroken.snapshot())
    assert broken.metrics == unbroken.metrics
    assert 0 < len(broken.family._waiting) == len(unbroken.family._waiting)


@pytest.mark.parametrize("wrong", [{"label_click": np.inf}, {"history_rewards": [np.nan]}])
def test_what_is_not_finite_is_refused(
    wrong: dict[str, Any], one_step: TrainerConfig, steps: list[Record]
) -> None:
    trainer = Trainer(one_step, "a")
    trainer.on_batch(steps[:1])
    before, state = trainer.samples, trainer.model.state_dict()["experts.layer.weight"].clone()
    history = {"history": [3], "history_rewards": [1.0]}
    bad = record([shown(2, 1.0, **{**history, **wrong}), shown(1, 0.0)], 1)
    (letter,) = trainer.on_batch([bad])
    assert letter.topic == DEAD_LETTERS
    assert trainer.samples == before
    assert torch.equal(trainer.model.state_dict()["experts.layer.weight"], state)
    assert not trainer.on_batch(steps[1:2])
    assert np.isfinite([*trainer.metrics.values()]).all()


def test_versions_have_the_items_and_the_calibration(
    one_step: TrainerConfig, steps: list[Record]
) -> None:
    trainer = Trainer(one_step, "a")
    items: dict[int, list[int]] = {}
    for number, one in enumerate(steps):
        trainer.on_batch([one])
        versions: list[Version] = trainer.on_time(number * 1_000_000)
        assert len(versions) == (2 if number and number % 3 == 0 else 1)
        for version in versions:
            told = version.shards["items"]
            assert told.num_rows == (number + 1 if version.info.base is None else 1)
            items |= zip(told["id"].to_pylist(), told["tokens"].to_pylist(), strict=True)
            served = Curves.from_table(version.shards["calibration"])
            own = trainer.family._calibrators.curves()
            asked = np.array([0.1, 0.5])
            for task in LABELS:
                for where in (ALL, *scenario_codes(["home", "deals", "elsewhere"]).tolist()):
                    found = served.calibrated(task, asked, where)
                    assert found.tolist() == own.calibrated(task, asked, where).tolist()
            if number > 3:  # clicks have been heard of
                assert "recent_served_calibration[click,home]" in version.info.metrics
    assert items == {100 + step: [step] for step in range(14)}


def test_ranks_calibrate_alike_and_tell_of_all(
    one_step: TrainerConfig, steps: list[Record], together: Callable[..., list[Any]]
) -> None:
    def of_rank(exchange: Exchange) -> tuple[Trainer, dict[str, float], Artefact]:
        trainer = Trainer(one_step, "a", None, Ranks(exchange))
        for pair in range(0, 12, 2):
            trainer.step(steps[pair + exchange.rank])
        trainer.step(None if exchange.rank else steps[12])
        return trainer, trainer.metrics, trainer.snapshot()

    (first, told, state), (second, also_told, part) = together(2, of_rank)
    curves = [one.family._calibrators.curves().table() for one in (first, second)]
    assert curves[0].num_rows == 6  # two tasks: of all, home and deals
    assert curves[0].equals(curves[1])
    assert told == also_told
    # Whoever takes over from both goes on with all that either has counted.
    whole = Artefact(state.meta, {**state.shards, **part.shards})
    heir = Trainer(one_step, "a", whole)
    assert heir.family._calibrators.curves().table().equals(curves[0])
    names = [name for name in told if "auc" in name or "calibration" in name]
    assert {name: heir.metrics[name] for name in names} == pytest.approx(
        {name: told[name] for name in names}
    )
    assert len(state.shards["items"]) == 13
    assert table_arrays(state.shards["calibrators"])["codes"].size == 2


def test_ranks_know_alike_how_items_do(
    responses: TrainerConfig, steps: list[Record], together: Callable[..., list[Any]]
) -> None:
    def of_rank(exchange: Exchange) -> tuple[pa.Table, Artefact]:
        trainer = Trainer(responses, "a", None, Ranks(exchange))
        for pair in range(0, 12, 2):
            trainer.step(steps[pair + exchange.rank])
        return trainer.family.book.table(-1), trainer.snapshot()

    (first, state), (second, part) = together(2, of_rank)
    assert first.equals(second)
    alone = Trainer(responses, "a")
    alone.on_batch(steps[:12])
    assert first["id"].equals(alone.family.book.table(-1)["id"])
    heir = Trainer(responses, "a", Artefact(state.meta, {**state.shards, **part.shards}))
    assert heir.family.book.table(-1).equals(first)
    for name in ("coec_responses", "positions_responses"):
        assert heir.snapshot().shards[name].equals(state.shards[name])


def test_of_what_waits_in_several_ranks_all_goes_on_waiting(
    lists: TrainerConfig, steps: list[Record], together: Callable[..., list[Any]]
) -> None:
    def of_rank(exchange: Exchange) -> tuple[int, Artefact]:
        trainer = Trainer(lists, "a", None, Ranks(exchange))
        for pair in range(0, 8, 2):
            trainer.step(steps[pair + exchange.rank])
        return len(trainer.family._waiting), trainer.snapshot()

    (first, state), (second, part) = together(2, of_rank)
    assert min(first, second) > 0
    heir = Trainer(lists, "a", Artefact(state.meta, {**state.shards, **part.shards}))
    assert len(heir.family._waiting) == first + second
