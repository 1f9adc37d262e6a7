"""`headrace fusion`: how the tasks of a candidate become its score; changed while it runs."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from infra.log_option import HomeOption, LogOption, chosen_log
from streaming.errors import ConfigError, LogError

if TYPE_CHECKING:
    from infra.recipe import Recipe
    from serving.fusion import Floats, FusionConfig
    from serving.fusion_tuning import Gains, Requests, Tuned
    from serving.judged import Judged
    from serving.live_fusion import FusionSettings
    from streaming.artefact_store import Artefacts
    from trainers.version_store import VersionStore
    from trainers.versions import Version, VersionInfo

fusion = typer.Typer(
    no_args_is_help=True,
    help="""How what a ranker expects of a candidate becomes its score: see, set, tune.

    What is set here counts before the recipe, in every replica within a second and until `reset`.
    Where a recipe names a store (`versions = "s3://bucket/prefix"`), name the recipe.""",
)


class Way(StrEnum):
    """`FusionConfig.how`, as an option."""

    SUM = "sum"
    PRODUCT = "product"
    POWER = "power"


RecipeOption = Annotated[
    str | None,
    typer.Option("--recipe", help="The recipe that is running.", show_default="the home"),
]
ScenarioOption = Annotated[
    str | None, typer.Option("--scenario", help="In this scenario.", show_default="everywhere")
]
ArmOption = Annotated[
    str | None, typer.Option("--arm", help="For this arm of an experiment, EXPERIMENT/ARM.")
]
HowOption = Annotated[Way, typer.Option("--how", help="How scores of tasks are put together.")]
_FEWEST = 20  # requests
JsonOption = Annotated[bool, typer.Option("--json", help="One JSON object.")]


@fusion.command()
def show(recipe: RecipeOption = None, home: HomeOption = None, as_json: JsonOption = False) -> None:
    """Show what is set where, and since when; with --recipe also what the recipe says."""
    settings = _settings(recipe, home)
    rows = [
        {"where": place, **asdict(one.fusion), "since_us": one.since_us}
        for place, one in settings.read().items()
    ]
    rows += [
        {"where": f"{place} (recipe)", **asdict(one), "since_us": None}
        for place, one in _of_recipe(recipe)
    ]
    if as_json:
        typer.echo(json.dumps({"fusion": rows}))
        return
    if not rows:
        _say("Nothing is set: what the recipe says counts (--recipe shows it).")
        return
    from serving.times import time_text

    table = Table("where", "how", "weights", "powers", "since")
    for row in rows:
        since = time_text(row["since_us"]) or "-"
        weights, powers = _numbers(row["weights"]), _numbers(row["powers"])
        table.add_row(row["where"], row["how"], weights, powers or "-", since)
    _say(table)


@fusion.command(name="set")
def set_weights(  # noqa: PLR0913 - the options of a command line
    weights: Annotated[
        list[str], typer.Argument(metavar="TASK=WEIGHT...", help="click=1 buy=4, and share=1.")
    ],
    how: HowOption = Way.PRODUCT,
    power: Annotated[
        list[str] | None, typer.Option("--power", help="TASK=EXPONENT, with --how power.")
    ] = None,
    scenario: ScenarioOption = None,
    arm: ArmOption = None,
    recipe: RecipeOption = None,
    home: HomeOption = None,
    log: LogOption = None,
    as_json: JsonOption = False,
) -> None:
    """Set the weights of tasks; tasks that are not named count for nothing."""
    from serving.fusion import FusionConfig

    place = _place(scenario, arm, recipe)
    found = FusionConfig(how.value, _read(weights), _read(power or []))
    known = _tasks(recipe, home)
    if unknown := sorted(found.weights.keys() - known):
        raise ConfigError(f"there is no task {unknown[0]!r}; known are {', '.join(sorted(known))}")
    _change(place, found, recipe, home, log)
    _told(place, found, as_json=as_json)


@fusion.command()
def reset(  # noqa: PLR0913 - the options of a command line
    scenario: ScenarioOption = None,
    arm: ArmOption = None,
    everything: Annotated[bool, typer.Option("--all", help="Wherever something is set.")] = False,
    recipe: RecipeOption = None,
    home: HomeOption = None,
    log: LogOption = None,
    as_json: JsonOption = False,
) -> None:
    """Leave it to the recipe again: what is set everywhere, or in one place, or in all."""
    place = "all" if everything else _place(scenario, arm, None)
    _change(None if everything else place, None, recipe, home, log)
    _told(place, None, as_json=as_json)


@fusion.command()
def tune(  # noqa: PLR0913 - the options of a command line
    objective: Annotated[
        str, typer.Option("--objective", help='What a label is worth: "click=1 buy=5", or "buy".')
    ],
    how: HowOption = Way.PRODUCT,
    samples: Annotated[int, typer.Option(min=100, help="By the newest so many samples.")] = 20_000,
    trials: Annotated[int, typer.Option(min=1, help="Weights to try.")] = 300,
    within_s: Annotated[float, typer.Option("--within-s", min=1, help="At most so long.")] = 60.0,
    model: Annotated[
        str | None, typer.Option("--model", help="Which ranker.", show_default="the only one")
    ] = None,
    scenario: ScenarioOption = None,
    arm: ArmOption = None,
    apply: Annotated[bool, typer.Option("--apply", help="Set what was found.")] = False,
    seed: Annotated[int, typer.Option(help="Of the search.")] = 0,
    recipe: RecipeOption = None,
    home: HomeOption = None,
    log: LogOption = None,
    as_json: JsonOption = False,
) -> None:
    """Find the weights by which what was shown would have earned the most, in the fused order.

    The first half of the newest requests is searched by, the figures are those of the other half:
    the share of the best order's gain, with the 95% interval (docs/fusion.md).
    """
    tune_fusion = _import_tuning()
    from serving.judged import judge, newest_samples, predicted, split

    place, worth = _place(scenario, arm, recipe), _worth(objective)
    version = _newest_ranker(_artefacts(recipe, home), model)
    with closing(chosen_log(log or _recipe_log(recipe), home)) as opened:
        judged = judge(newest_samples(opened, samples), worth, scenario)
    predictions = predicted(version, judged)
    earlier, later = split(judged, 0.5)
    with _bar(trials) as told:
        tuned = tune_fusion(
            {task: made[earlier] for task, made in predictions.items()},
            _requests(judged, earlier), how.value,
            trials=trials, within_s=within_s, seed=seed, told=told,
        )  # fmt: skip
    in_force = _in_force(place, recipe, home)
    figures = _compared(judged, later, predictions, in_force, tuned)
    if apply:
        _change(place, tuned.fusion, recipe, home, log)
    told_of = {"version": version.info.name, "requests": judged.requests, "trials": tuned.trials}
    if as_json:
        found = {"where": place, "fusion": asdict(tuned.fusion), "applied": apply}
        typer.echo(json.dumps({**told_of, **found, "objective": figures}))
        return
    _say("{version}, {requests:,} requests, {trials:,} trials".format(**told_of))
    table = Table("order by", "objective", "95% interval", "over what is in force")
    for name, (value, low, high, *lead) in figures.items():
        row = (name, f"{value:.4f}", f"{low:.4f} to {high:.4f}")
        table.add_row(*row, "{:+.4f} ({:+.4f} to {:+.4f})".format(*lead))
    _say(table)
    _say(f"{tuned.fusion.how} of {_numbers(tuned.fusion.weights)}{_powers(tuned.fusion)}")
    _say("It is set." if apply else "Nothing is changed; --apply sets it.")


# -- tuning --------------------------------------------------------------------------------


def _import_tuning() -> Any:
    try:
        from serving.fusion_tuning import tune as tune_fusion
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"`headrace fusion tune` needs {error.name}, which is not installed:"
            " pip install 'headrace[tuning]'"
        ) from error
    return tune_fusion


def _requests(judged: Judged, chosen: Any) -> Requests:
    from serving.fusion_tuning import Requests

    if len(set(judged.groups[chosen].tolist())) < _FEWEST or not judged.values[chosen].any():
        raise ConfigError(
            f"of {judged.requests:,} requests all is known, and too few of them came to anything:"
            " ask for more --samples, or wait until the windows of labels have ended"
        )
    return Requests(judged.values[chosen], judged.groups[chosen], judged.weights[chosen])


def _compared(
    judged: Judged, later: Any, predictions: Mapping[str, Floats], in_force: FusionConfig,
    tuned: Tuned,
) -> dict[str, tuple[float, ...]]:  # fmt: skip
    """Of each order its objective and interval, and its lead over what is in force with that."""
    import numpy as np

    from serving.fusion import SHARE, fused

    requests = _requests(judged, later)
    tasks = {name: made[later] for name, made in predictions.items()}
    places = -judged.places[later]
    orders = {} if np.isnan(places).any() else {"as it was shown": places}
    served = judged.served[later]
    if not np.isnan(served).any():
        orders["served score"] = served
    # The share is not in samples: the score with which it was served stands for it, or its place.
    share = served if "served score" in orders else 1.0 / (1.0 - np.nan_to_num(places))
    orders |= {f"{name} alone": made for name, made in tasks.items()}
    orders["in force"] = fused({SHARE: share} | tasks, in_force)
    orders["tuned"] = fused(tasks, tuned.fusion)
    found = {name: requests.gains(scores) for name, scores in orders.items()}
    return {name: _figures(gains, found["in force"]) for name, gains in found.items()}


def _figures(gains: Gains, in_force: Gains) -> tuple[float, ...]:
    lead = gains.share - in_force.share
    return gains.share, *gains.interval(), lead, *gains.interval(in_force)


@contextmanager
def _bar(trials: int) -> Iterator[Callable[[int, float], None]]:
    """A live bar on a terminal, and silence elsewhere."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.completed}/{task.total}"), TextColumn("{task.fields[figures]}"))
    bar = Progress(
        TextColumn("[bold]tune[/]"), BarColumn(), *columns, TimeRemainingColumn(),
        console=console, transient=True, disable=not console.is_terminal,
    )  # fmt: skip
    task = bar.add_task("tune", total=trials, figures="")
    with bar:
        yield lambda done, best: bar.update(task, completed=done, figures=f"objective {best:.4f}")


def _newest_ranker(artefacts: Artefacts, model: str | None) -> Version:
    """The newest version of a ranker that is not held back, with all that it stands on.

    Raises:
        ConfigError: there is none, or which one is not said.
        ArtefactError: it cannot be read.
    """
    from trainers.compaction import compact_chain
    from trainers.version_store import VersionStore

    store = VersionStore(artefacts)
    rankers = {info.model: info for info in _rankers(store)}
    if model is None and len(rankers) != 1:
        which = f"name one of {', '.join(sorted(rankers))} with --model" if rankers else (
            "a recipe trains one in [models], and its versions come with the first samples"
        )  # fmt: skip
        raise ConfigError(f"there are versions of {len(rankers)} rankers: {which}")
    if model is not None and model not in rankers:
        raise ConfigError(
            f"there are no versions of a ranker {model!r}; there are of"
            f" {', '.join(sorted(rankers)) or 'none'}"
        )
    info = rankers[model] if model is not None else next(iter(rankers.values()))
    return compact_chain([store.read(link) for link in store.chain(info.name)])


def _rankers(store: VersionStore) -> Iterator[VersionInfo]:
    """The newest version of each model that is a ranker."""
    from trainers.models import family_of

    for model in store.models():
        name = store.last_good(model)
        if name is not None:
            info = store.chain(name)[-1]
            if family_of(info.kind or info.model) == "ranking":
                yield info


# -- setting -------------------------------------------------------------------------------


def _tasks(recipe: str | None, home: Path | None) -> set[str]:
    """What rankers predict, as the recipe and the newest versions say, and the share."""
    from serving.fusion import SHARE
    from trainers.models import family_of, find
    from trainers.version_store import VersionStore

    kinds: list[tuple[str, Mapping[str, Any]]] = [
        (i.kind or i.model, i.options) for i in _rankers(VersionStore(_artefacts(recipe, home)))
    ]
    if recipe is not None:
        kinds += [(one.model, one.options) for one in _recipe(recipe).trainers.values()]
    rankers = [(kind, options) for kind, options in kinds if family_of(kind) == "ranking"]
    return {SHARE, *(task for kind, options in rankers for task in find(kind, options)[1].tasks)}


def _change(
    place: str | None,
    fusion: FusionConfig | None,
    recipe: str | None,
    home: Path | None,
    log: str | None,
) -> None:
    """Changes what is set in a place, or clears all, and tells replicas to look; without a log
    they do so by themselves.
    """
    from serving.live_fusion import bell

    settings = _settings(recipe, home)
    if place is None:
        settings.clear()
    else:
        settings.change(place, fusion)
    try:
        with closing(chosen_log(log or _recipe_log(recipe), home)) as opened:
            opened.append([bell()])
    except (ConfigError, LogError) as error:
        _say(f"Replicas notice within 10 s, for the log did not tell them: {error}", error=True)


def _place(scenario: str | None, arm: str | None, recipe: str | None) -> str:
    """Where a fusion is to count, of which a recipe that is named must know.

    Raises:
        ConfigError: names what it does not know.
    """
    from serving.live_fusion import place_of

    if arm is None:
        return place_of(scenario)
    experiment, slash, name = arm.partition("/")
    if scenario is not None or not (experiment and slash and name):
        raise ConfigError(f"--arm {arm}: write EXPERIMENT/ARM, and no --scenario beside it")
    if recipe is not None:
        known = _recipe(recipe).recommend.experiments
        if experiment not in known or name not in known[experiment].arms:
            arms = [f"{one}/{way}" for one, of in known.items() for way in of.arms]
            raise ConfigError(f"--arm {arm}: the recipe has {', '.join(arms) or 'none'}")
    return place_of(arm=(experiment, name))


def _in_force(place: str, recipe: str | None, home: Path | None) -> FusionConfig:
    """What counts in a place by now; of a recipe that is not named, what it has by default."""
    from serving.fusion import FusionConfig
    from serving.live_fusion import EVERYWHERE

    settings, own = _settings(recipe, home).read(), dict(_of_recipe(recipe))
    for where in (place, EVERYWHERE):
        if where in settings:
            return settings[where].fusion
        if where in own:
            return own[where]
    return FusionConfig()


def _of_recipe(recipe: str | None) -> Iterator[tuple[str, FusionConfig]]:
    """What a recipe says of fusion, and where; nothing, if none is named."""
    from serving.live_fusion import EVERYWHERE, place_of
    from streaming.settings import changed

    if recipe is None:
        return
    config = _recipe(recipe).recommend
    yield EVERYWHERE, config.fusion
    others = [(place_of(name), changes) for name, changes in config.scenarios.items()]
    others += [
        (place_of(arm=(name, arm)), way.changes)
        for name, experiment in config.experiments.items()
        for arm, way in experiment.arms.items()
    ]
    for place, changes in others:
        if "fusion" in changes:
            table: FusionConfig = changed(config.fusion, changes["fusion"], place)
            yield place, table


# -- finding -------------------------------------------------------------------------------


def _settings(recipe: str | None, home: Path | None) -> FusionSettings:
    from serving.live_fusion import FusionSettings

    return FusionSettings(_artefacts(recipe, home))


def _artefacts(recipe: str | None, home: Path | None) -> Artefacts:
    """Where versions are, and what is set beside them.

    Raises:
        ConfigError: nothing has run in the home yet.
    """
    from infra.home import Home
    from streaming.artefact_store import open_artefacts

    place = Home(home or Path(".headrace"))
    named = None if recipe is None else _recipe(recipe).versions
    if named is None and not place.exists:
        raise ConfigError(f"nothing has run in {place.path} yet: start with `headrace run`")
    return open_artefacts(named or place.versions)


def _recipe(name: str) -> Recipe:
    from infra.recipe import load_recipe

    return load_recipe(name)


def _recipe_log(recipe: str | None) -> str | None:
    return None if recipe is None else _recipe(recipe).log


# -- reading and telling -------------------------------------------------------------------


def _read(pairs: Sequence[str]) -> dict[str, float]:
    """`NAME=NUMBER` as given.

    Raises:
        ConfigError: quotes one that is none.
    """
    found: dict[str, float] = {}
    for pair in pairs:
        name, _, number = pair.partition("=")
        try:
            found[name] = float(number)
        except ValueError:
            raise ConfigError(f"{pair!r}: write NAME=NUMBER, such as click=1") from None
    return found


def _worth(objective: str) -> dict[str, float]:
    """What labels are worth; one without a number is worth 1.

    >>> _worth("click=1 buy=5"), _worth("buy")
    ({'click': 1.0, 'buy': 5.0}, {'buy': 1.0})
    """
    found = _read([one if "=" in one else f"{one}=1" for one in objective.split()])
    if not found or not all(number >= 0 for number in found.values()) or not any(found.values()):
        raise ConfigError(
            f'--objective {objective!r}: write what labels are worth, "click=1 buy=5"'
        )
    return found


def _numbers(numbers: Mapping[str, float]) -> str:
    return ", ".join(f"{name}={number:g}" for name, number in numbers.items())


def _powers(fusion: FusionConfig) -> str:
    return f", raised to {_numbers(fusion.powers)}" if fusion.powers else ""


def _told(place: str, fusion: FusionConfig | None, *, as_json: bool) -> None:
    if as_json:
        told = None if fusion is None else asdict(fusion)
        typer.echo(json.dumps({"where": place, "fusion": told}))
    elif fusion is None:
        _say(f"{place}: the recipe counts again.")
    else:
        what = f"{fusion.how} of {_numbers(fusion.weights)}{_powers(fusion)}"
        _say(f"{place}: {what}, until `headrace fusion reset`.")


def _say(what: str | Table, *, error: bool = False) -> None:
    width = None if sys.stdout.isatty() else 160
    Console(width=width, stderr=error).print(what, highlight=False, soft_wrap=isinstance(what, str))
