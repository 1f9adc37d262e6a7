"""`headrace fusion`: as a user runs it, on a home in which a ranker has learnt of a world."""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from shutil import copytree
from typing import Any

import pytest
from typer.testing import CliRunner

from features.behaviour import Behaviour
from infra.cli import app
from infra.home import Home
from infra.recipe import load_recipe
from infra.status import newest_version
from serving.fusion import FusionConfig
from serving.live_fusion import EVERYWHERE, FusionSettings, LiveFusion, place_of
from serving.recommender import RecommendConfig
from streaming.artefact_store import open_artefacts
from streaming.errors import ConfigError
from streaming.events import encode_events
from streaming.joiner import Joiner
from streaming.log import EVENTS, SAMPLES, Append, Log, Record
from streaming.open_log import open_log
from streaming.sources.registry import open_source
from trainers.negatives import NegativesConfig
from trainers.trainer import Trainer, TrainerConfig
from trainers.version_store import VersionStore

RANKER = TrainerConfig(
    model="mmoe",
    options={"tasks": {"click": {}, "buy": {"after": "click"}}, "width": 4, "tower": 4},
    publish_every_s=0.0,
)
RETRIEVER = TrainerConfig(
    options={"width": 4, "hidden": 4}, negatives=NegativesConfig(uniform=16), publish_every_s=0.0
)
RECIPE = """
source = "none"
[recommend.fusion]
weights = { share = 2.0 }
[recommend.scenarios.search.fusion]
how = "sum"
[recommend.experiments.weights.arms.bold.changes.fusion]
weights = { buy = 1.0 }
[models.mmoe]
options = { tasks = { click = {}, cart = { after = "click" } } }
"""


def world_samples() -> list[Append]:
    """Impressions of the planted world and what came of them, joined as in production."""
    recipe, source = load_recipe("world"), open_source("world")
    joiner = Joiner(recipe.joiner, recipe.events, Behaviour(recipe.behaviour))
    found: list[Append] = []
    for number in range(5):
        part = source.batch(4_096 * number, 4_096)
        record = Record(EVENTS, 0, number, None, encode_events(part).value, part["at"][-1].value)
        found += [one for one in joiner.on_batch([record]) if one.topic == SAMPLES]
    return found


@pytest.fixture(scope="module")
def learnt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = Home(tmp_path_factory.mktemp("learnt") / "home")
    home.make()
    store, samples = VersionStore(home.versions), world_samples()
    with closing(open_log(home.log_url)) as log:
        log.append(samples)
        for config in (RANKER, RETRIEVER):
            trainer = Trainer(config, "20261121T100000-aaaa")
            for number, sample in enumerate(samples[:10]):
                trainer.on_batch([Record(SAMPLES, 0, number, sample.key, sample.value, 0)])
            log.append(store.execute(trainer.on_time(0)))
    return home.path


@pytest.fixture
def home(learnt: Path, tmp_path: Path) -> Home:
    return Home(copytree(learnt, tmp_path / "home"))


@pytest.fixture
def recipe(tmp_path: Path) -> str:
    path = tmp_path / "recipe.toml"
    path.write_text(RECIPE)
    return str(path)


def run(home: Home, command: str, *more: str) -> Any:
    """Runs a command with --json; its answer."""
    arguments = ["fusion", *command.split(), *more, "--home", str(home.path), "--json"]
    result = CliRunner().invoke(app, arguments, catch_exceptions=False)
    return json.loads(result.output)


def refusal(home: Home, command: str, *more: str) -> str:
    with pytest.raises(ConfigError) as error:
        run(home, command, *more)
    return str(error.value)


def settings(home: Home) -> FusionSettings:
    return FusionSettings(open_artefacts(home.versions))


@contextmanager
def following(log: Log, home: Home) -> Iterator[LiveFusion]:
    """A replica's part in it, in a thread."""
    live, stopping = LiveFusion(log, settings(home), RecommendConfig()), threading.Event()
    thread = threading.Thread(target=live.run, args=(stopping,))
    thread.start()
    try:
        yield live
    finally:
        stopping.set()
        thread.join()


def wait_for(live: LiveFusion, fusion: FusionConfig | None) -> None:
    end = time.monotonic() + 8.0  # it would look by itself after ten seconds
    while live.current("home", {}) != fusion:
        assert time.monotonic() < end
        time.sleep(0.01)


def test_running_replicas_take_what_is_set_and_reset(home: Home) -> None:
    wanted = FusionConfig("sum", {"click": 1.0, "buy": 4.0})
    with closing(open_log(home.log_url)) as log, following(log, home) as live:
        assert run(home, "set click=1 buy=4 --how sum") == {
            "where": "everywhere",
            "fusion": {"how": "sum", "weights": {"click": 1.0, "buy": 4.0}, "powers": {}},
        }
        wait_for(live, wanted)
        run(home, "reset")
        wait_for(live, None)
        assert newest_version(log) is not None  # what is said of fusion is no version
        assert newest_version(log, "mmoe") is not None


def test_one_place_is_set_and_reset_and_others_stay(home: Home) -> None:
    run(home, "set buy=1")
    run(home, "set buy=2 click=1 --how power --power buy=0.5 --scenario home")
    run(home, "set share=1 --arm weights/bold")
    rows = {row["where"]: row for row in run(home, "show")["fusion"]}
    everywhere, of_arm, of_home = (
        rows[place] for place in ("everywhere", "arm weights/bold", "scenario home")
    )
    assert everywhere["weights"] == {"buy": 1.0}
    assert of_arm["weights"] == {"share": 1.0}
    assert (of_home["how"], of_home["powers"]) == ("power", {"buy": 0.5})
    assert all(row["since_us"] > 0 for row in (everywhere, of_arm, of_home))
    run(home, "reset --scenario home")
    assert list(settings(home).read()) == ["arm weights/bold", EVERYWHERE]
    run(home, "reset --all")
    assert settings(home).read() == {}


def test_what_the_recipe_says_is_shown_beside_it(home: Home, recipe: str) -> None:
    run(home, "set buy=1 --scenario search", "--recipe", recipe)
    result = CliRunner().invoke(
        app, ["fusion", "show", "--home", str(home.path), "--recipe", recipe]
    )
    lines = result.output.splitlines()
    (set_,) = [line for line in lines if "scenario search " in line and "recipe" not in line]
    assert re.search(r"product.*buy=1.*20\d\d-", set_)
    assert any("everywhere (recipe)" in line and "share=2" in line for line in lines)
    assert any("scenario search (recipe)" in line and "sum" in line for line in lines)
    assert any("arm weights/bold (recipe)" in line and "buy=1" in line for line in lines)


def test_nothing_that_is_set_is_said_in_words(home: Home) -> None:
    result = CliRunner().invoke(app, ["fusion", "show", "--home", str(home.path)])
    assert "Nothing is set" in result.output


@pytest.mark.parametrize(
    ("command", "sentence"),
    [
        ("set cart=1", "there is no task 'cart'; known are buy, click, share"),
        ("set click", "'click': write NAME=NUMBER"),
        ("set click=inf", "fusion.weights.click = inf: it must be finite"),
        ("set click=1 --power click=2", 'set how = "power"'),
        ("set click=1 --how power --power buy=2", "fusion.powers.buy: it has no weight"),
        ("set click=1 --arm bold", "--arm bold: write EXPERIMENT/ARM"),
        ("tune --objective wish=-1", "write what labels are worth"),
        ("tune --objective nothing", "samples have no label 'nothing'"),
        ("tune --objective click --model dlrm", "no versions of a ranker 'dlrm'"),
    ],
)
def test_what_makes_no_sense_is_refused_and_nothing_is_set(
    home: Home, command: str, sentence: str
) -> None:
    assert sentence in refusal(home, command)
    assert settings(home).read() == {}


def test_a_recipe_knows_tasks_and_arms(home: Home, recipe: str) -> None:
    run(home, "set cart=1 --arm weights/bold", "--recipe", recipe)
    assert place_of(arm=("weights", "bold")) in settings(home).read()
    sentence = refusal(home, "set cart=1 --arm weights/timid", "--recipe", recipe)
    assert "the recipe has weights/bold" in sentence


def test_a_home_in_which_nothing_ran_is_told(tmp_path: Path) -> None:
    assert "nothing has run in" in refusal(Home(tmp_path / "none"), "show")


def test_weights_are_tuned_by_what_came_of_the_newest_impressions(home: Home) -> None:
    found = run(home, "tune --trials 12 --samples 10000 --apply", "--objective", "click=1 watch=2")
    assert found["version"].startswith("mmoe/")
    assert found["trials"] == 12
    assert found["requests"] > 100
    figures = found["objective"]
    assert {"click alone", "buy alone", "in force", "tuned"} <= figures.keys()
    for value, low, high, lead, *_ in figures.values():
        assert 0.0 < low <= value <= high <= 1.0
        assert lead == pytest.approx(value - figures["in force"][0])
    fusion = settings(home).read()[EVERYWHERE].fusion
    assert fusion == FusionConfig(**found["fusion"])
    assert fusion.weights.keys() <= {"click", "buy"}


def test_without_apply_nothing_is_changed(home: Home) -> None:
    arguments = ["fusion", "tune", "--objective", "click", "--trials", "3", "--how", "sum"]
    result = CliRunner().invoke(app, [*arguments, "--home", str(home.path)], catch_exceptions=False)
    assert "Nothing is changed; --apply sets it." in result.output
    assert re.search(r"tuned +│ +0\.\d{4} +│ 0\.\d{4} to 0\.\d{4} +│ [+-]", result.output)
    assert settings(home).read() == {}
