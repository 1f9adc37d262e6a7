"""The planted world: its events are lawful and reproducible, and its truth is what they show."""

from __future__ import annotations

import dataclasses
import json
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from streaming.decode import decode_events
from streaming.errors import ConfigError
from streaming.events import EventRules, encode_events
from streaming.log import EVENTS, Record
from streaming.sources.chance import Floats, normal, picked, uniform
from streaming.sources.choice import ChoiceConfig, Scenario
from streaming.sources.descriptions import WORDS
from streaming.sources.population import Interests, Lives, Population, PopulationConfig
from streaming.sources.registry import open_source
from streaming.sources.traffic import PolicyConfig, TrafficConfig, rhythm
from streaming.sources.truth import Truth, numbers
from streaming.sources.unreliable import Unreliable, UnreliableConfig
from streaming.sources.world import DAY_US, World, WorldConfig, load_world

SMALL = WorldConfig(
    days=4,
    population=PopulationConfig(users=300, items=200, item_life_days=8.0, user_life_days=40.0),
    choice=ChoiceConfig(longest_delay_days=1.5),
    traffic=TrafficConfig(sessions_per_user_day=0.6),
)
# Items alone: no context, and nobody leaves, comes back or acts twice.
PLAIN = WorldConfig(
    days=10,
    population=PopulationConfig(users=1_500, items=150),
    choice=ChoiceConfig(contrast=0.0, redundancy=0.0, again=0.0, action=-0.4, click=-0.6),
    traffic=TrafficConfig(sessions_per_user_day=1.0, leave=0.0, rebuy=0.0, organic=0.0),
    policy=PolicyConfig(random=0.6, popular=0.2),
)


@pytest.fixture(scope="module")
def small() -> World:
    return World(SMALL)


@pytest.fixture(scope="module")
def events(small: World) -> pd.DataFrame:
    return frame(small.batch(0, small.total))


@pytest.fixture(scope="module")
def plain() -> tuple[World, pd.DataFrame]:
    """A large world, and its impressions with what came of them."""
    world = World(PLAIN)
    found = frame(world.batch(0, world.total))
    return world, outcomes(found)


def frame(batch: pa.RecordBatch) -> pd.DataFrame:
    table = pa.table(batch)
    at = table["at"].cast(pa.int64())
    return table.set_column(table.schema.get_field_index("at"), "at", at).to_pandas()


def outcomes(events: pd.DataFrame) -> pd.DataFrame:
    """Impressions; `click`, `act`, `buy` and `watch` are what came of each."""
    pair = ["request_id", "item_id"]
    shown = events[events.kind == "impression"].copy()
    for name, kinds in (("click", ["click"]), ("act", ["cart", "wish"]), ("buy", ["buy"])):
        came = events[events.kind.isin(kinds)][pair].drop_duplicates()
        came[name] = 1.0
        shown = shown.merge(came, how="left", on=pair).fillna({name: 0.0})
    watched = events[events.kind == "watch"][[*pair, "value"]].dropna(subset=["request_id"])
    shown = shown.merge(watched.rename(columns={"value": "watch"}), how="left", on=pair)
    notes = shown.attributes.fillna("{}").map(json.loads)
    shown["policy"] = notes.map(lambda note: note.get("policy", "ranked"))
    shown["propensity"] = notes.map(lambda note: note.get("propensity", np.nan))
    return shown


def asked(shown: pd.DataFrame) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    at = shown["at"].to_numpy(np.int64)
    return numbers(shown.user_id.tolist()), numbers(shown.item_id.tolist()), at


def assert_calibrated(came: Floats, truth: Floats, bins: int = 8, z: float = 4.0) -> None:
    """In each slice by the truth, what came is within the noise of so many tosses."""
    order = np.argsort(truth, kind="stable")
    for part in np.array_split(order, bins):
        spread = np.sqrt((truth[part] * (1 - truth[part])).sum())
        assert abs(came[part].sum() - truth[part].sum()) < z * spread + 1e-9


# -- events --------------------------------------------------------------------------------


def test_every_event_keeps_the_rules_and_comes_in_the_order_of_time(
    small: World, events: pd.DataFrame
) -> None:
    assert (np.diff(events["at"]) >= 0).all()
    assert events.event_id.is_unique
    assert events["at"].iloc[0] == small.start_us
    assert events["at"].iloc[-1] < small.start_us + SMALL.days * DAY_US
    record = encode_events(small.batch(0, small.total))
    now_us = small.start_us + SMALL.days * DAY_US
    decoded = decode_events([Record(EVENTS, 0, 0, None, record.value, now_us)], EventRules())
    assert decoded.rejected == []
    assert decoded.events.num_rows == small.total


def test_every_kind_of_event_occurs_and_has_its_fields(events: pd.DataFrame) -> None:
    kinds = {"impression", "click", "watch", "like", "wish", "cart", "buy", "search"}
    assert set(events.kind) == kinds | {"item", "user"}
    shown = events[events.kind == "impression"]
    assert shown[["request_id", "position", "scenario", "user_id", "item_id"]].notna().all(None)
    assert events[events.kind == "watch"].value.between(0, 1).all()
    assert (events[events.kind == "buy"].value > 0).all()
    assert events[events.kind == "search"]["query"].str.len().gt(0).all()
    without_request = events[(events.kind == "click") & events.request_id.isna()]
    assert len(without_request) > 0  # organic


def test_suggestions_follow_what_is_popular_and_nothing_else_changes(
    small: World, events: pd.DataFrame
) -> None:
    world = World(replace(SMALL, traffic=replace(SMALL.traffic, suggested_popular=1.0)))
    found = frame(world.batch(0, world.total))
    of_platform = found.attributes == '{"suggested":true}'
    assert of_platform.sum() > 100
    columns = ["kind", "at", "user_id", "item_id", "position", "value", "attributes"]
    pd.testing.assert_frame_equal(found[columns], events[columns])
    pd.testing.assert_series_equal(found["query"][~of_platform], events["query"][~of_platform])

    stock = small.stock(0)
    popularity = np.bincount(stock.items.topic, stock.popularity, SMALL.population.topics)
    word_topic = {word: n // WORDS for n, word in enumerate(small.descriptions.words)}

    def mean_popularity(queries: pd.Series) -> float:
        topics = queries.str.split().str[0].map(word_topic).to_numpy(np.int64)
        return float((popularity / popularity.sum())[topics].mean())

    popular = mean_popularity(found["query"][of_platform])
    assert popular == pytest.approx((popularity**2).sum() / popularity.sum() ** 2, rel=0.15)
    assert popular > 1.15 * mean_popularity(events["query"][of_platform])


def test_feedback_follows_its_impression(events: pd.DataFrame) -> None:
    pair = ["request_id", "item_id"]
    shown = events[events.kind == "impression"].set_index(pair)["at"]
    assert shown.index.is_unique  # nothing is shown twice in one list
    for kind in ("click", "watch", "like", "wish", "cart", "buy"):
        feedback = events[(events.kind == kind) & events.request_id.notna()]
        when = shown.loc[pd.MultiIndex.from_frame(feedback[pair])].to_numpy()
        assert (feedback["at"].to_numpy() > when).all()
    late = events[(events.kind == "buy") & events.request_id.notna()]
    delays = late["at"].to_numpy() - shown.loc[pd.MultiIndex.from_frame(late[pair])].to_numpy()
    assert np.median(delays) > 600e6
    assert delays.max() <= SMALL.choice.longest_delay_days * DAY_US


def test_what_happens_during_a_session_has_its_id(events: pd.DataFrame) -> None:
    shown = events[events.kind == "impression"]
    assert (shown.request_id.str.rsplit("/", n=1).str[0] == shown.session_id).all()
    of_sessions = events.dropna(subset="session_id").groupby("session_id")
    assert (of_sessions.user_id.nunique() == 1).all()
    assert of_sessions.ngroups < shown.request_id.nunique()
    assert events[events.kind == "search"].session_id.notna().all()
    organic = events[(events.kind == "click") & events.request_id.isna()]
    assert organic.session_id.notna().all()
    assert events[events.kind.isin(["item", "user"])].session_id.isna().all()


def test_who_comes_back_later_is_in_no_session_that_is_known(events: pd.DataFrame) -> None:
    begun = events[events.kind == "impression"].groupby("request_id")["at"].min()
    bought = events[events.kind == "buy"]
    waited = bought["at"] - bought.request_id.map(begun)  # NaN for what is bought again
    at_once = waited < 600e6
    assert 0 < at_once.sum() < len(bought)
    assert (bought.session_id.notna() == at_once).all()


def test_positions_run_from_the_top_without_a_gap(events: pd.DataFrame) -> None:
    shown = events[events.kind == "impression"]
    lists = shown.groupby("request_id").position.agg(["min", "max", "count"])
    assert (lists["min"] == 0).all()
    assert (lists["max"] + 1 == lists["count"]).all()


def test_who_acts_has_been_announced_and_only_the_living_are_shown(
    small: World, events: pd.DataFrame
) -> None:
    for who in ("user", "item"):
        known = events[events.kind == who].set_index(f"{who}_id")["at"]
        assert known.index.is_unique
        acted = events[(events.kind != who) & events[f"{who}_id"].notna()]
        assert (known.loc[acted[f"{who}_id"]].to_numpy() <= acted["at"].to_numpy()).all()
    shown = events[events.kind == "impression"]
    gone = small.population.item_lives.of(numbers(shown.item_id.tolist()))[1]
    assert (small.days_at(shown["at"].to_numpy()) <= gone + 1e-9).all()
    assert (events.kind == "item").sum() > SMALL.population.items  # some were born on the way


# -- one world, however it is read -----------------------------------------------------------


def test_the_same_seed_gives_the_same_bits_and_another_one_another_world(small: World) -> None:
    some = small.batch(1_000, 500)
    assert World(SMALL).batch(1_000, 500).equals(some)
    other = World(replace(SMALL, seed=1))
    assert other.name != small.name
    assert not other.batch(1_000, 500)["item_id"].equals(some["item_id"])


@pytest.mark.parametrize("size", [1, 97, 4_096])
def test_batches_of_any_size_anywhere_are_slices_of_one_sequence(small: World, size: int) -> None:
    whole = small.batch(0, small.total)
    fresh = World(SMALL)
    starts = [small.total - 50, 0, small.total // 2, small.total // 2 + size, 7]
    for start in starts:
        expected = whole.slice(start, min(size, small.total - start))
        assert fresh.batch(start, size).equals(expected)
    assert fresh.batch(small.total, 5).num_rows == 0


def test_the_endless_stream_begins_with_the_finite_one_and_goes_on(small: World) -> None:
    stream = World(SMALL).batches()
    days = SMALL.days * small.blocks_a_day
    begun = pa.concat_batches(list(islice(stream, days)))
    assert begun.equals(small.batch(0, small.total))
    beyond = next(stream)
    assert beyond.num_rows > 0
    assert next(World(SMALL).batches(first_day=SMALL.days)).equals(beyond)


def test_a_longer_world_begins_like_a_shorter_one(small: World) -> None:
    longer = World(replace(SMALL, days=6))
    assert longer.batch(0, small.total).equals(small.batch(0, small.total))


def test_a_change_of_one_part_leaves_the_others_as_they_were(small: World) -> None:
    shop = (Scenario("shop", 1.0, length=4),)
    changed = World(replace(SMALL, scenarios=shop, choice=ChoiceConfig(click=0.0)))
    who = np.arange(100)
    for name in ("users", "items"):
        before = getattr(small.population, name)(who)
        after = getattr(changed.population, name)(who)
        for f in dataclasses.fields(before):
            assert np.array_equal(getattr(before, f.name), getattr(after, f.name))
    more = Population(0, replace(SMALL.population, demographic=0.9))
    assert np.array_equal(more.items(who).vector, small.population.items(who).vector)


def test_the_world_is_a_source_by_its_name_and_takes_a_file(tmp_path: Path) -> None:
    file = tmp_path / "world" / "world.toml"
    file.parent.mkdir()
    file.write_text('days = 1\n[population]\nusers = 50\n[[scenarios]]\nname = "a"\nshare = 1.0\n')
    source = open_source("world", tmp_path)
    assert source.total == World(load_world(file)).total
    assert set(frame(source.batch(0, source.total)).scenario.dropna()) == {"a"}


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("day = 3", "day is not a setting"),
        ("[population]\nusers = 0", "population.users = 0"),
        ("[policy]\nrandom = 0.7\npopular = 0.7", "together at most 1"),
        ('[[scenarios]]\nname = "a"\nshare = 1.0\nfrom_day = 3', "open from day 0"),
        ("days = ", "is not TOML"),
    ],
)
def test_a_world_that_cannot_be_is_refused_in_one_sentence(
    tmp_path: Path, text: str, sentence: str
) -> None:
    file = tmp_path / "world.toml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=sentence):
        World(load_world(file))


# -- the truth -------------------------------------------------------------------------------


def test_clicks_come_as_often_as_the_truth_says(plain: tuple[World, pd.DataFrame]) -> None:
    world, shown = plain
    truth = Truth(world)
    for scenario in ("home", "similar"):
        part = shown[(shown.scenario == scenario) & (shown.policy != "ranked")]
        users, items, at = asked(part)
        places = part.position.to_numpy(np.int64)
        said = truth.click_probability(users, items, places, scenario, at)
        assert len(part) > 10_000
        assert_calibrated(part.click.to_numpy(), said)
        for place in range(4):
            here = places == place
            assert_calibrated(part.click.to_numpy()[here], said[here], bins=1)


def test_searched_lists_agree_with_the_truth_of_their_focus(
    plain: tuple[World, pd.DataFrame],
) -> None:
    world, shown = plain
    truth = Truth(world)
    part = shown[(shown.scenario == "search") & (shown.policy == "ranked")]
    users, items, at = asked(part)
    slots = truth.focus(part.request_id.tolist(), users, at)
    seen = truth.examination(part.position.to_numpy(np.int64), "search")
    said = seen * truth.relevance(users, items, "search", at, slots)
    assert_calibrated(part.click.to_numpy(), said)
    blind = seen * truth.relevance(users, items, "search", at)
    assert said.mean() > 1.15 * blind.mean()  # the query says what the mean does not know


def test_what_follows_a_click_agrees_with_the_truth(plain: tuple[World, pd.DataFrame]) -> None:
    world, shown = plain
    truth = Truth(world)
    settled = world.start_us + 3 * DAY_US  # the longest delay before the end
    part = shown[(shown.click == 1) & (shown.scenario == "home") & (shown["at"] < settled)]
    question = (*asked(part)[:2], "home", asked(part)[2])
    assert len(part) > 1_500
    assert_calibrated(part.act.to_numpy(), truth.action_probability(*question), bins=5)
    assert_calibrated(part.buy.to_numpy(), truth.conversion_probability(*question), bins=5)
    watched, said = part.watch.to_numpy(), truth.watch_fraction(*question)
    for half in np.array_split(np.argsort(said), 4):
        error = watched[half].mean() - said[half].mean()
        assert abs(error) < 4 * watched[half].std() / np.sqrt(len(half))


def test_those_who_click_are_no_fair_sample_of_those_who_would_buy(
    plain: tuple[World, pd.DataFrame],
) -> None:
    world, shown = plain
    truth = Truth(world)
    part = shown[(shown.scenario == "home") & (shown.policy == "random")]
    question = (*asked(part)[:2], "home", asked(part)[2])
    would_buy = truth.conversion_probability(*question)
    clicked = part.click.to_numpy() == 1
    assert would_buy[clicked].mean() > 1.2 * would_buy.mean()
    relevance = truth.relevance(*question)
    assert np.corrcoef(relevance, would_buy)[0, 1] < 0.7  # another function, not the same again


def test_the_list_around_an_item_changes_its_clicks_as_the_truth_says() -> None:
    choice = ChoiceConfig(contrast=1.0, redundancy=1.5, again=0.0, click=-0.4)
    config = replace(PLAIN, days=8, choice=choice, scenarios=(Scenario("home", 1.0, length=5),))
    world = World(config)
    shown = outcomes(frame(world.batch(0, world.total)))
    shown = shown[shown.policy == "random"].sort_values(["request_id", "position"])
    shown = shown[shown.groupby("request_id").position.transform("count") == 5]
    users, items, at = (column.reshape(-1, 5) for column in asked(shown))
    truth = Truth(world)
    said = truth.clicks_in_lists(users[:, 0], items, "home", at[:, 0])
    clicks = shown.click.to_numpy().reshape(-1, 5)
    assert_calibrated(clicks.ravel(), said.ravel())
    total = truth.expected_clicks(users[:, 0], items, "home", at[:, 0])
    assert np.allclose(total, said.sum(axis=1))
    alone = truth.click_probability(
        users.ravel(), items.ravel(), np.tile(np.arange(5), len(users)), "home", at.ravel()
    )
    spread = np.sqrt((said * (1 - said)).sum())
    assert abs(clicks.sum() - alone.sum()) > 8 * spread  # who forgets the list is wrong


def test_propensities_are_those_of_the_draws(plain: tuple[World, pd.DataFrame]) -> None:
    world, shown = plain
    truth = Truth(world)
    top = shown[(shown.position == 0) & (shown.policy == "popular")]
    day = top[world.days_at(top["at"].to_numpy()).astype(int) == 2]
    noon = world.start_us + 2 * DAY_US + DAY_US // 2
    living = truth.living(noon)
    said = truth.propensity("popular", living, noon)
    assert said.sum() == pytest.approx(1.0)
    assert truth.propensity("random", living, noon) == pytest.approx(1 / len(living))
    logged = day.drop_duplicates("item_id").set_index("item_id").propensity
    assert np.isclose(logged.loc[f"i{living[said.argmax()]}"], said.max(), rtol=0.05)
    lives = world.population.item_lives.of(np.arange(PLAIN.population.items))
    ever = np.flatnonzero((lives[0] < 0) & (lives[1] > PLAIN.days))
    for policy in ("random", "popular"):
        lists = shown[(shown.policy == policy) & (shown.position < 2)]
        count = lists.request_id.nunique()
        for item in [f"i{number}" for number in ever[:20]]:
            here = lists[lists.item_id == item]
            tops, seconds = (here[here.position == place].propensity for place in (0, 1))
            # One over the propensity counts the lists that could have had the item there: all
            # of them at the top, those that did not have it at the top in the second place.
            for chances, could in ((tops, count), (seconds, count - len(tops))):
                error = np.sqrt(((1 - chances) / chances**2).sum())
                assert abs((1 / chances).sum() - could) < 4.5 * error


def test_weighting_by_propensity_recovers_the_value_of_another_policy(
    plain: tuple[World, pd.DataFrame],
) -> None:
    """Clicks at the top under `popular`, estimated from the random slice."""
    world, shown = plain
    truth = Truth(world)
    top = shown[(shown.position == 0) & (shown.scenario == "home")]
    popular, random = top[top.policy == "popular"], top[top.policy == "random"]
    target = np.zeros(len(random))
    days = world.days_at(random["at"].to_numpy()).astype(int)
    for day in np.unique(days):
        noon = world.start_us + int(day) * DAY_US + DAY_US // 2
        rows = days == day
        target[rows] = truth.propensity("popular", asked(random[rows])[1], noon)
    weighted = random.click.to_numpy() * target / random.propensity.to_numpy()
    real = popular.click.to_numpy()
    error = np.sqrt(weighted.var() / len(weighted) + real.var() / len(real))
    assert abs(weighted.mean() - real.mean()) < 4 * error


def test_the_best_items_are_better_than_what_is_shown(plain: tuple[World, pd.DataFrame]) -> None:
    world, shown = plain
    truth = Truth(world)
    at = world.start_us + 5 * DAY_US
    items, relevance = truth.best(7, "home", at, 10)
    assert len(set(items.tolist())) == 10
    assert set(items.tolist()) <= set(truth.living(at).tolist())
    assert (np.diff(relevance) <= 0).all()
    everything = truth.relevance(np.array([7]), truth.living(at), "home", at)
    assert relevance[0] == everything.max()
    clicks = shown[shown.scenario == "home"].groupby("policy").click.mean()
    assert clicks["ranked"] > 1.5 * clicks["random"]


def test_unknown_names_are_refused_in_one_sentence(small: World) -> None:
    truth = Truth(small)
    with pytest.raises(ConfigError, match="scenario 'hoem' is not there; known are home"):
        truth.relevance(np.array([1]), np.array([1]), "hoem", small.start_us)
    with pytest.raises(ConfigError, match="has no known propensity"):
        truth.propensity("ranked", np.array([1]), small.start_us)


# -- what the world is rich in -----------------------------------------------------------------


def test_interests_drift_and_are_several(small: World) -> None:
    truth = Truth(small)
    users = np.arange(200)
    now, soon, late = (
        truth.interests(users, small.start_us + days * DAY_US) for days in (0, 1, 200)
    )
    assert np.allclose(now.weights.sum(axis=1), 1)
    held = (now.weights > 0).sum(axis=1)
    assert set(held.tolist()) == {1, 2, 3, 4}

    def kept(later: Interests) -> float:
        return float((later.topics == now.topics)[now.weights > 0].mean())

    assert kept(soon) > 0.9
    assert kept(late) < 0.2


def test_no_single_vector_stands_for_a_user_of_two_interests(small: World) -> None:
    """Two topics are liked more than whatever lies between them."""
    population = small.population
    users = population.users(np.arange(300))
    interests = population.interests(users, np.zeros(300))
    apart = (interests.vectors[:, 0] * interests.vectors[:, 1]).sum(axis=1)
    chosen = (interests.weights[:, 1] > 0.3) & (interests.weights[:, 0] > 0.3) & (apart < 0.3)
    both = interests.vectors[chosen][:, :2]
    between = both.sum(axis=1) / np.linalg.norm(both.sum(axis=1), axis=1, keepdims=True)
    sharp = SMALL.choice.sharpness
    weights = interests.weights[chosen][:, :2]

    def taste(at: Floats) -> Floats:
        near = np.einsum("nkd,nd->nk", both, at)
        return np.asarray((weights * np.exp(sharp * (near - 1))).sum(axis=1))

    assert chosen.sum() > 10
    assert (taste(both[:, 0]) > taste(between)).mean() > 0.9


def test_content_and_people_are_noisy_views_of_tastes(small: World, events: pd.DataFrame) -> None:
    items = events[events.kind == "item"]
    topics = small.population.items(numbers(items.item_id.tolist())).topic
    described = items.attributes.map(json.loads)
    categories = described.map(lambda one: int(one["category"].split("-")[1]))
    told = (categories == topics // 4).mean()
    assert 0.8 < told < 0.95
    users = small.population.users(np.arange(3_000))
    interests = small.population.interests(users, np.zeros(3_000))
    first = interests.topics[:, 0]
    overall = np.bincount(first, minlength=32) / len(first)
    cell = np.bincount(first[users.cell == 4], minlength=32) / (users.cell == 4).sum()
    assert np.abs(cell - overall).sum() > 0.3


def test_activity_is_heavy_tailed_and_follows_the_clock(
    plain: tuple[World, pd.DataFrame],
) -> None:
    world, shown = plain
    requests = shown.drop_duplicates("request_id")
    by_user = requests.user_id.value_counts()
    assert by_user.iloc[: len(by_user) // 10].sum() > 0.3 * len(requests)
    days = world.days_at(requests["at"].to_numpy())
    counts = np.histogram(days % 1, bins=24, range=(0, 1))[0]
    assert counts[20] > 3 * counts[8]
    assert rhythm(np.linspace(0, 7, 7_001)[:-1]).mean() == pytest.approx(1.0, abs=0.01)
    assert (shown.scenario == "channel:new").sum() == 0  # opens on day 10


def test_populations_keep_their_size_for_ever() -> None:
    lives = Lives(0, "item", 1_000, 30.0)
    sizes = [len(lives.living(day, day + 0.001)) for day in (0, 10, 100, 5_000)]
    assert all(900 < size < 1_100 for size in sizes)
    parts = [lives.announced(day, day + 1)[0] for day in range(100)]
    whole = lives.announced(0, 100)[0]
    assert np.array_equal(np.concatenate(parts), whole)


def test_chance_is_uniform_and_independent_of_who_asks() -> None:
    drawn = uniform(3, "x", np.arange(100)[:, None], np.arange(1_000))
    assert drawn.shape == (100, 1_000)
    assert drawn[7, 9] == uniform(3, "x", 7, 9)[0]
    assert drawn[7, 9] != drawn[9, 7]
    counts = np.histogram(drawn, bins=20, range=(0, 1))[0]
    assert (abs(counts - 5_000) < 5 * np.sqrt(5_000)).all()
    bells = normal(3, "y", np.arange(100_000))
    assert abs(bells.mean()) < 0.02
    assert bells.std() == pytest.approx(1, abs=0.02)
    shares = np.bincount(picked(np.cumsum([1.0, 0.0, 3.0]), drawn.ravel())) / drawn.size
    assert shares == pytest.approx([0.25, 0, 0.75], abs=0.01)


# -- the unreliable way ------------------------------------------------------------------------


def unreliable(small: World, duplicated: float = 0.1, skew_s: float = 0.0) -> Unreliable:
    return Unreliable(small, UnreliableConfig(late_by=50, duplicated=duplicated, skew_s=skew_s))


def test_what_arrives_is_all_there_out_of_order_within_the_bound(
    small: World, events: pd.DataFrame
) -> None:
    source = unreliable(small)
    arrived = frame(source.batch(0, source.total + 10))
    assert len(arrived) == source.total
    counts = arrived.event_id.value_counts()
    assert set(counts.index) == set(events.event_id)
    assert (counts == 2).mean() == pytest.approx(0.1, abs=0.02)
    places = pd.Series(np.arange(len(events)), index=events.event_id)
    order = places.loc[arrived.drop_duplicates("event_id").event_id].to_numpy()
    assert (np.diff(order) < 0).mean() > 0.3
    overtaken = np.maximum.accumulate(order) - order
    assert 0 < overtaken.max() <= 50


@pytest.mark.parametrize("size", [13, 1_000])
def test_an_unreliable_source_is_reproducible_from_anywhere(small: World, size: int) -> None:
    whole = unreliable(small).batch(0, 10**9)
    source = unreliable(small)
    for start in (0, size, 3 * size, 10_000, 5):
        assert source.batch(start, size).equals(whole.slice(start, size))


def test_clocks_of_producers_are_wrong_always_by_the_same(
    small: World, events: pd.DataFrame
) -> None:
    source = unreliable(small, duplicated=0.0, skew_s=30.0)
    arrived = frame(source.batch(0, source.total)).set_index("event_id").loc[events.event_id]
    off = pd.Series(arrived["at"].to_numpy() - events["at"].to_numpy(), index=events.user_id)
    assert off.groupby(level=0).nunique().max() == 1
    assert 1 < off.nunique() <= 5
    assert off.abs().max() <= 30e6


def test_generation_needs_no_more_memory_for_a_longer_stream(
    measured_memory: Callable[[Callable[[], object]], int],
) -> None:
    tiny = replace(SMALL, population=replace(SMALL.population, users=60, items=60))

    def days(number: int) -> Callable[[], object]:
        return lambda: [b.num_rows for b in islice(World(tiny).batches(), number)]

    measured_memory(days(5))
    assert measured_memory(days(40)) < 2 * measured_memory(days(10))


@pytest.fixture
def measured_memory() -> Callable[[Callable[[], object]], int]:
    def peak(work: Callable[[], object]) -> int:
        tracemalloc.start()
        work()
        highest = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return highest

    return peak
