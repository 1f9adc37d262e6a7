"""`headrace versions`: as a user runs it, on a home in which a real trainer has published."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from shutil import copytree
from typing import Any

import pytest
from typer.testing import CliRunner

from benchmarks._object_store import object_store
from features.behaviour import Behaviour, BehaviourConfig
from infra.cli import app
from infra.home import Home
from infra.status import newest_version
from serving.follower import Follower
from serving.replica import Replica
from streaming.artefact_store import open_artefacts
from streaming.errors import ArtefactError, ConfigError
from streaming.events import EventRules, encode_events
from streaming.joiner import Joiner, JoinerConfig
from streaming.log import EVENTS, SAMPLES, Log, Record
from streaming.open_log import open_log
from streaming.sources.movielens import MovieLens
from trainers.negatives import NegativesConfig
from trainers.trainer import Trainer, TrainerConfig
from trainers.version_store import VersionStore

LOGGED_US = 1_700_000_000_000_000
EVERY = 3  # each third version is a snapshot too
ENTRIES = ("0", "1", "2", "3", "3.whole", "4")
LINEAGES = ("20261121T100000-aaaa", "20261121T110000-bbbb")
OLD, NEW = LINEAGES
CONFIG = TrainerConfig(
    options={"width": 4, "hidden": 4},
    negatives=NegativesConfig(uniform=16),
    publish_every_s=0.0,
    snapshot_every=EVERY,
    wire="float16",
)


def micro_batches() -> list[Record]:
    """Ratings of MovieLens, joined as in production, in steps of 32."""
    ratings = MovieLens()
    batch = ratings.batch(ratings.declarations, 256)
    event = encode_events(batch)
    joiner = Joiner(JoinerConfig(step_size=32), EventRules(), Behaviour(BehaviourConfig()))
    samples = joiner.on_batch([Record(EVENTS, 0, 0, event.key, event.value, LOGGED_US)])
    return [Record(SAMPLES, 0, n, s.key, s.value, LOGGED_US + n) for n, s in enumerate(samples)]


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home in which two incarnations of a trainer have published five versions each, the fourth
    as a delta and as a snapshot.
    """
    home = Home(tmp_path_factory.mktemp("published") / "home")
    home.make()
    records = micro_batches()
    store = VersionStore(home.versions, snapshots_kept=10)
    with closing(open_log(home.log_url)) as log:
        for number, lineage in enumerate(LINEAGES):
            trainer = Trainer(CONFIG, lineage)
            for record in [None, *records[4 * number : 4 * number + 4]]:
                if record is not None:
                    trainer.on_batch([record])
                log.append(store.execute(trainer.on_time(0)))
    return home.path


@pytest.fixture
def home(published: Path, tmp_path: Path) -> Home:
    return Home(copytree(published, tmp_path / "home"))


@pytest.fixture
def log(home: Home) -> Iterator[Log]:
    with closing(open_log(home.log_url)) as opened:
        yield opened


def told(home: Home, *arguments: str, code: int = 0) -> dict[str, Any]:
    result = CliRunner().invoke(app, ["versions", *arguments, "--home", str(home.path), "--json"])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == code, result.output
    answer: dict[str, Any] = json.loads(result.stdout)
    return answer


def shown(home: Home, *arguments: str, code: int = 0) -> str:
    result = CliRunner().invoke(app, ["versions", *arguments, "--home", str(home.path)])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == code, result.output
    return result.stdout


class Served:
    """A replica that follows the home."""

    def __init__(self, home: Home, log: Log) -> None:
        self.replica = Replica()
        self._follower = Follower(log, VersionStore(home.versions), self.replica, look_back=100)

    @property
    def version(self) -> str:
        self._follower.turn(0)
        assert self.replica.info is not None
        return self.replica.info.name.removeprefix("two_tower/")


# Looking


def test_versions_are_listed_the_newest_last(home: Home) -> None:
    found = told(home, "list")
    names = [version["name"] for version in found["versions"]]
    assert names == [f"two_tower/{lineage}/{n}" for lineage in LINEAGES for n in ENTRIES]
    assert (found["pinned"], found["newest"]) == (None, names[-1])
    newest = found["versions"][-1]
    assert (newest["base"], newest["marks"]) == (3, ["newest"])
    assert newest["bytes"] > 1_000
    assert newest["rows"] > 0
    assert 0 <= newest["age_s"] < 3_600
    assert newest["watermark"].endswith("Z")
    text = shown(home, "list")
    assert f"{NEW}/4" in text
    assert "recall@10" in text
    assert "Replicas follow the newest version." in text
    assert "The newest 2 of 12; --limit 0 lists all." in shown(home, "list", "--limit", "2")


def test_a_version_is_shown_with_its_bytes_per_row(home: Home) -> None:
    found = told(home, "show", f"{NEW}/3.whole")
    assert (found["base"], found["metrics"]["samples"] > 0) == (None, True)
    assert told(home, "show", f"{NEW}/3")["base"] == 2
    assert told(home, "show", "0.whole")["name"] == f"two_tower/{NEW}/0"
    item = found["shards"]["table-item"]
    assert item["bytes_per_row"] == item["size"] / item["rows"]
    assert 16 < item["bytes_per_row"] < 40  # an id of 8 bytes, 4 numbers of 2, and the file's own
    text = shown(home, "show", "4")  # of the newest lineage that has it
    assert f"two_tower/{NEW}/4, continues 3, newest" in text
    assert "table-item.gone" in text


def test_all_is_well_until_a_byte_is_flipped(home: Home) -> None:
    found = told(home, "verify")
    assert (found["intact"], found["damaged"], len(found["reachable"])) == (12, {}, 10)
    shard = home.versions / "two_tower" / OLD / "1" / "vectors.arrow"
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)
    (home.versions / "two_tower" / NEW / "3" / "manifest.json").unlink()
    found = told(home, "verify", code=1)
    assert [*found["damaged"]] == [f"two_tower/{NEW}/3", f"two_tower/{OLD}/1"]
    assert found["intact"] == 10
    assert found["unreachable"] == [f"two_tower/{OLD}/2"]
    text = shown(home, "verify", code=1)
    assert f"two_tower/{OLD}/1 is damaged" in text
    assert "its checksum differs" in text
    assert "8 of 10 versions can be reached, 2 artefacts are damaged." in text
    assert told(home, "list")["newest"] == f"two_tower/{NEW}/4"
    (home.versions / "two_tower" / NEW / "3.whole" / "manifest.json").unlink()
    assert told(home, "verify", code=1)["unreachable"] == [
        f"two_tower/{OLD}/2",
        f"two_tower/{NEW}/4",
    ]
    assert "6 of 10 versions can be reached, 3 artefacts" in shown(home, "verify", code=1)
    assert told(home, "list")["newest"] == f"two_tower/{NEW}/2"
    assert "unreachable" in shown(home, "list")


# Holding


def test_replicas_are_held_and_let_go(home: Home, log: Log) -> None:
    served = Served(home, log)
    assert served.version == f"{NEW}/4"
    assert told(home, "pin") == {"pinned": f"two_tower/{NEW}/4", "was": None}
    text = shown(home, "rollback", f"{OLD}/4")
    assert f"held at two_tower/{OLD}/4 until `headrace versions unpin`" in text
    assert served.version == f"{OLD}/4"
    listed = told(home, "list")
    assert listed["pinned"] == f"two_tower/{OLD}/4"
    assert [v["name"] for v in listed["versions"] if "pinned" in v["marks"]] == [listed["pinned"]]
    assert Served(home, log).version == f"{OLD}/4"  # a replica that starts now
    assert "they were held at" in shown(home, "unpin")
    assert served.version == f"{NEW}/4"


def test_steps_are_counted_from_what_is_held(home: Home, log: Log) -> None:
    served = Served(home, log)
    assert told(home, "rollback")["pinned"] == f"two_tower/{NEW}/3"
    assert told(home, "rollback", "--steps", "2")["pinned"] == f"two_tower/{NEW}/1"
    assert served.version == f"{NEW}/1"
    assert told(home, "rollback", "--steps", "2")["pinned"] == f"two_tower/{OLD}/4"
    with pytest.raises(ConfigError, match=r"4 versions before .*/4 are left, --steps 9 asks for"):
        told(home, "rollback", "--steps", "9")


def test_a_version_is_the_same_whichever_way_it_is_named(home: Home, log: Log) -> None:
    served = Served(home, log)
    assert told(home, "pin", f"{NEW}/3.whole")["pinned"] == f"two_tower/{NEW}/3"
    assert served.version == f"{NEW}/3"
    listed = told(home, "list")["versions"]
    pinned = [v["name"] for v in listed if "pinned" in v["marks"]]
    assert pinned == [f"two_tower/{NEW}/3", f"two_tower/{NEW}/3.whole"]
    assert told(home, "rollback")["pinned"] == f"two_tower/{NEW}/2"
    with pytest.raises(ConfigError, match=f"{NEW}/3 is not earlier than"):
        told(home, "rollback", f"{NEW}/3.whole")


def test_back_is_not_forward(home: Home) -> None:
    told(home, "pin", f"{OLD}/3")
    with pytest.raises(ConfigError, match=f"{NEW}/0 is not earlier than .*{OLD}/3: .*pin"):
        told(home, "rollback", f"{NEW}/0")
    assert told(home, "pin", f"{NEW}/0")["was"] == f"two_tower/{OLD}/3"


def test_a_version_that_is_not_there_is_answered_with_the_nearest(home: Home) -> None:
    for command in ("pin", "show", "rollback"):
        with pytest.raises(ConfigError, match=rf"no version '{NEW}/7': the nearest are .*{NEW}/"):
            told(home, command, f"{NEW}/7")
    with pytest.raises(ConfigError, match=r"no version '\.\./\.\./x'"):
        told(home, "pin", "../../x")
    assert told(home, "list")["pinned"] is None


def test_a_damaged_version_cannot_be_held(home: Home, log: Log) -> None:
    served = Served(home, log)
    told(home, "pin", f"{NEW}/2")
    (home.versions / "two_tower" / OLD / "3.whole" / "dense.arrow").unlink()
    with pytest.raises(ArtefactError, match=rf"cannot be held at .*{OLD}/4: .*dense.arrow"):
        told(home, "pin", f"{OLD}/4")
    assert told(home, "list")["pinned"] == f"two_tower/{NEW}/2"
    assert served.version == f"{NEW}/2"


def test_doorbells_hide_no_announcement(home: Home, log: Log) -> None:
    before = newest_version(log)
    told(home, "pin")
    told(home, "unpin")
    assert newest_version(log) == before
    assert before is not None
    assert before["name"] == f"two_tower/{NEW}/4"


# Where


def test_an_empty_home_says_what_makes_versions(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no versions yet: `headrace run` makes them"):
        told(Home(tmp_path), "list")


def test_several_models_must_be_told_apart(home: Home) -> None:
    copytree(home.versions / "two_tower", home.versions / "other")
    with pytest.raises(ConfigError, match="--model: the store has versions of other, two_tower"):
        told(home, "list")
    assert told(home, "list", "--model", "two_tower")["newest"] == f"two_tower/{NEW}/4"
    with pytest.raises(ConfigError, match="none of 'third'"):
        told(home, "list", "--model", "third")


def test_what_the_gate_holds_back_is_marked_and_rollback_passes_over_it(
    home: Home, log: Log
) -> None:
    store = VersionStore(home.versions, snapshots_kept=10)
    trainer = Trainer(CONFIG, "20261121T120000-cccc")
    names = []
    for second in range(4):
        trainer.steps += 1
        versions = trainer.on_time(second * 1_000_000)
        names.append(versions[0].info.name)
        if second in (1, 3):
            verdict: dict[str, Any] = {
                "held": "it is worse than before",
                "last_good": names[second - 1],
            }
            versions = [replace(v, info=replace(v.info, **verdict)) for v in versions]
        log.append(store.execute(versions))
    shown = told(home, "list")
    assert shown["held"] == "it is worse than before"
    assert shown["last_good"] == names[2]
    marks = {one["name"]: one["marks"] for one in shown["versions"]}
    assert marks[names[1]] == ["held back"]
    assert marks[names[2]] == ["last good"]
    assert marks[names[3]] == ["newest", "held back"]
    text = CliRunner().invoke(app, ["versions", "list", "--home", str(home.path)]).output
    says = f"The gate holds the newest back, replicas are at {names[2]}: it is worse than before."
    assert says in text
    told(home, "rollback")
    assert store.pinned("two_tower") == names[0]  # not the one between, which was held back


def test_a_recipe_may_name_an_object_store(
    home: Home, log: Log, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "tests")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "none")
    with object_store(tmp_path / "s3") as url:
        recipe = tmp_path / "far.toml"
        recipe.write_text(f'source = "none"\nversions = "{url}"\n')
        store, near = VersionStore(open_artefacts(url)), VersionStore(home.versions)
        for number in range(3):
            info = near.stored(f"two_tower/{NEW}/{number}").info
            assert len(store.execute([near.read(info)])) == 1
        assert told(home, "rollback", "--recipe", str(recipe))["pinned"] == f"two_tower/{NEW}/1"
        assert told(home, "verify", "--recipe", str(recipe))["intact"] == 3
        replica = Replica()
        Follower(log, store, replica, look_back=100).turn(0)
        assert replica.info is not None
        assert replica.info.name == f"two_tower/{NEW}/1"
