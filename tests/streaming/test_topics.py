"""The topics in Kafka: a plan says what it would do, does it when told, and takes nothing away."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
from typer.testing import CliRunner

from benchmarks._broker import Broker
from infra.cli import app
from streaming.errors import ConfigError, LogError
from streaming.log import EVENTS, SAMPLES, TOPICS, VERSIONS
from streaming.topics import CANNOT, CHANGE, CREATE, KEEP, Topics, TopicsConfig, wanted_settings

Make = Callable[[TopicsConfig], Topics]


@pytest.fixture
def topics(broker: Broker) -> Iterator[Make]:
    opened: list[Topics] = []

    def make(config: TopicsConfig) -> Topics:
        opened.append(Topics(f"{broker.url}?topic_prefix=shop.", config))
        return opened[-1]

    yield make
    for one in opened:
        one.close()


def test_an_empty_broker_gets_every_topic_and_then_all_is_as_it_should_be(topics: Make) -> None:
    found = topics(TopicsConfig(partitions=3, samples_partitions=2))
    plan = found.plan()
    assert [one.topic for one in plan] == [f"shop.{topic}" for topic in TOPICS]
    assert {one.action for one in plan} == {CREATE}
    assert found.missing() == [one.topic for one in plan]
    found.apply(plan)
    again = found.plan()
    assert {one.action for one in again} == {KEEP}
    assert [one.have for one in again] == [3, 2, 1, 1]
    assert found.missing() == []


def test_a_plan_alone_changes_nothing(topics: Make) -> None:
    found = topics(TopicsConfig())
    found.plan()
    assert len(found.missing()) == len(TOPICS)


@pytest.mark.parametrize("partitions", [2, 9])
def test_partitions_are_neither_taken_away_nor_added_under_waiting_events(
    topics: Make, partitions: int
) -> None:
    first = topics(TopicsConfig(partitions=4))
    first.apply(first.plan())
    other = topics(TopicsConfig(partitions=partitions))
    plan = other.plan()
    assert [one.action for one in plan] == [CANNOT, KEEP, KEEP, KEEP]
    with pytest.raises(
        LogError, match=rf"shop.events has 4 partitions and cannot have {partitions}"
    ):
        other.apply(plan)


def test_samples_may_get_more_partitions_and_the_plan_says_how(topics: Make) -> None:
    first = topics(TopicsConfig(partitions=4))
    first.apply(first.plan())
    plan = topics(TopicsConfig(partitions=4, samples_partitions=2)).plan()
    assert [one.action for one in plan] == [KEEP, CHANGE, KEEP, KEEP]
    samples = plan[TOPICS.index(SAMPLES)]
    assert samples.grows
    assert (samples.have, samples.partitions, samples.changes) == (1, 2, {})
    assert "stop the joiners and the trainer before --apply" in samples.why


def test_a_broker_that_adds_no_partitions_is_told_of_and_changes_nothing(topics: Make) -> None:
    """This broker, unlike Apache Kafka, cannot."""
    first = topics(TopicsConfig(partitions=4))
    first.apply(first.plan())
    more = topics(TopicsConfig(partitions=4, samples_partitions=2))
    plan = more.plan()
    with pytest.raises(LogError, match="CreatePartitions"):
        more.apply(plan)
    assert more.plan() == plan


def test_partitions_of_samples_are_not_taken_away(topics: Make) -> None:
    first = topics(TopicsConfig(partitions=4, samples_partitions=4))
    first.apply(first.plan())
    other = topics(TopicsConfig(partitions=4, samples_partitions=2))
    plan = other.plan()
    assert [one.action for one in plan] == [KEEP, CANNOT, KEEP, KEEP]
    with pytest.raises(
        LogError, match="shop.samples has 4 partitions and cannot have 2: Kafka takes none away"
    ):
        other.apply(plan)


def test_partitions_of_samples_that_would_stay_empty_are_refused() -> None:
    TopicsConfig(partitions=2, samples_partitions=2)
    sentence = "samples_partitions = 3 is more than partitions = 2: the rest would stay empty"
    with pytest.raises(ConfigError, match=sentence):
        TopicsConfig(partitions=2, samples_partitions=3)


def test_settings_that_differ_are_shown_one_by_one(topics: Make) -> None:
    config = TopicsConfig()
    first = topics(config)
    first.apply(first.plan())
    longer = topics(replace(config, events_retention_days=14.0))
    events, *others = longer.plan()
    assert events.action == CHANGE
    assert events.changes == {"retention.ms": str(14 * 86_400_000)}
    assert {one.action for one in others} == {KEEP}
    longer.apply(longer.plan())


def test_versions_are_kept_by_size_however_old_they_are() -> None:
    settings = wanted_settings(VERSIONS, TopicsConfig())
    assert settings["retention.ms"] == "-1"
    assert settings["retention.bytes"] == str(1024**3)
    assert wanted_settings(EVENTS, TopicsConfig(replication=3))["min.insync.replicas"] == "2"


def test_the_command_shows_the_plan_and_applies_it_only_when_told(broker: Broker) -> None:
    def run(*options: str) -> dict[str, list[dict[str, object]]]:
        result = CliRunner().invoke(app, ["topics", "--log", broker.url, "--json", *options])
        assert result.exit_code == 0, result.output
        found: dict[str, list[dict[str, object]]] = json.loads(result.output)
        return found

    assert [one["action"] for one in run()["topics"]] == [CREATE] * 4
    assert [one["action"] for one in run()["topics"]] == [CREATE] * 4
    assert [one["action"] for one in run("--apply")["topics"]] == [KEEP] * 4
    table = CliRunner().invoke(app, ["topics", "--log", broker.url]).output
    assert "retention.ms" in table
    assert KEEP in table
    assert "`--apply` does it" not in table
    more = [one["have"] for one in run("--samples-partitions", "2")["topics"]]
    assert more == [4, 1, 1, 1]
    table = (
        CliRunner().invoke(app, ["topics", "--log", broker.url, "--samples-partitions", "2"]).output
    )
    assert "1 (would be 2)" in table
    assert "`--apply` does it" in table
