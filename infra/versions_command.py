"""`headrace versions`: what is in the store, whether it is whole, and what replicas are held at."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from infra.log_option import HomeOption, LogOption, chosen_log
from streaming.errors import ArtefactCorrupt, ArtefactError, ConfigError, LogError

if TYPE_CHECKING:
    from trainers.version_store import Stored, VersionStore

versions = typer.Typer(
    no_args_is_help=True,
    help="""The versions of the model: what replicas serve, what they could go back to.

    A version is called MODEL/LINEAGE/NUMBER; LINEAGE/NUMBER will do, and NUMBER for the newest
    lineage that has it. NUMBER.whole is the snapshot of a version that is a delta too: the same
    version, for replicas that have not got what the delta continues. Where a recipe names a store
    (`versions = "s3://bucket/prefix"`), name the recipe.""",
)
NameArgument = Annotated[str, typer.Argument(help="A version, as `list` calls it.")]
RecipeOption = Annotated[
    str | None,
    typer.Option("--recipe", help="The recipe that names the store.", show_default="the home"),
]
ModelOption = Annotated[
    str | None, typer.Option("--model", help="Whose versions.", show_default="the only one")
]
JsonOption = Annotated[bool, typer.Option("--json", help="One JSON object.")]


@dataclass(frozen=True)
class Shelf:
    """The versions of one model, the oldest first, as they are by now.

    A version may have two artefacts, its delta and its snapshot, in this order.
    """

    store: VersionStore
    model: str
    artefacts: dict[str, Stored]
    damaged: dict[str, str]  # artefact -> why its manifest cannot be read
    pinned: str | None

    @property
    def names(self) -> list[str]:
        """What the versions are called, each once."""
        return [*dict.fromkeys(stored.info.name for stored in self.artefacts.values())]

    @property
    def held(self) -> dict[str, str]:
        """The versions that the gate holds back, and why."""
        infos = [stored.info for stored in self.artefacts.values()]
        return {info.name: info.held for info in infos if info.held is not None}

    @property
    def last_good(self) -> str | None:
        """The version at which the gate holds replicas; None if it does not."""
        newest = next(reversed(self.artefacts.values()), None)
        return None if newest is None or newest.info.held is None else newest.info.last_good

    def reachable(self, whole: Callable[[str], bool] = lambda _: True) -> list[str]:
        """The versions that a replica could be brought to, by their names; the oldest first.

        `whole` says whether an artefact is.
        """
        found = dict.fromkeys(self.names, False)
        for artefact, stored in self.artefacts.items():  # what it continues came before it
            info = stored.info
            base = f"{info.model}/{info.lineage}/{info.base}"
            if whole(artefact) and (info.base is None or found.get(base, False)):
                found[info.name] = True
        return [name for name, is_reachable in found.items() if is_reachable]

    def find(self, name: str) -> Stored:
        """A version; of its two artefacts the one that is named, or else the first.

        Raises:
            ConfigError: there is none of that name.
        """
        version = _version_of(name)
        names = [one for one in self.names if one == version or one.endswith(f"/{version}")]
        if names:
            ways = [s for s in self.artefacts.values() if s.info.name == names[-1]]
            return next((s for s in ways if s.info.artefact.endswith(name)), ways[0])
        short = {part: one for one in self.names for part in (one, *_short_names(one))}
        near = dict.fromkeys(short[one] for one in get_close_matches(name, short, 3, cutoff=0.3))
        raise ConfigError(
            f"there is no version {name!r}: the nearest are {', '.join(near or self.names[-3:])};"
            " `headrace versions list --limit 0` names all"
        )


# -- looking -------------------------------------------------------------------------------


@versions.command(name="list")
def list_versions(
    recipe: RecipeOption = None,
    model: ModelOption = None,
    home: HomeOption = None,
    limit: Annotated[int, typer.Option(min=0, help="The newest so many; 0 for all.")] = 20,
    as_json: JsonOption = False,
) -> None:
    """List the versions, the newest last, and what replicas are held at."""
    shelf = _shelf(recipe, home, model)
    reachable = set(shelf.reachable())
    shown = [_told(s, shelf, reachable) for s in [*shelf.artefacts.values()][-limit:]]
    if as_json:
        typer.echo(json.dumps({"versions": shown, **_summary(shelf)}))
        return
    table = Table(title=f"Versions of {shelf.model}, the newest last")
    for column in ("version", "base", "MB", "rows", "age", "watermark", "figures", ""):
        table.add_column(column, justify="right" if column in ("base", "MB", "rows") else "left")
    for told in shown:
        table.add_row(
            told["name"].partition("/")[2],
            "snapshot" if told["base"] is None else str(told["base"]),
            f"{told['bytes'] / 1e6:,.2f}",
            "?" if told["rows"] is None else f"{told['rows']:,}",
            _age(told["age_s"]),
            told["watermark"] or "none",
            ", ".join(f"{n} {v:.3f}" for n, v in _main_figures(told["metrics"]).items()),
            ", ".join(told["marks"]),
        )
    _say(table)
    if len(shown) < len(shelf.artefacts):
        _say(f"The newest {len(shown)} of {len(shelf.artefacts):,}; --limit 0 lists all.")
    for name, reason in shelf.damaged.items():
        _say(f"{name} is damaged: {reason}")
    _say(_standing(shelf))


@versions.command()
def show(
    name: NameArgument,
    recipe: RecipeOption = None,
    model: ModelOption = None,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show one version: where it stands, its shards with their bytes per row, its figures."""
    shelf = _shelf(recipe, home, model)
    stored = shelf.find(name)
    told = _told(stored, shelf, set(shelf.reachable()))
    told["shards"] = {
        shard: {**s._asdict(), "bytes_per_row": s.size / s.rows if s.size and s.rows else None}
        for shard, s in sorted(stored.shards.items())
    }
    if as_json:
        typer.echo(json.dumps(told))
        return
    base = "a snapshot" if told["base"] is None else f"continues {told['base']}"
    _say(f"version    {told['name']}, {base}" + "".join(f", {mark}" for mark in told["marks"]))
    _say(f"step       {told['step']:,}")
    _say(f"watermark  {told['watermark'] or 'none'}")
    _say(f"written    {_age(told['age_s'])} ago, {told['bytes']:,} bytes")
    if reason := told["held"] or told["suspect"]:
        _say(f"gate       {reason}")
    table = Table("shard", "checksum")
    for column in ("rows", "bytes", "bytes per row"):
        table.add_column(column, justify="right")
    for shard, told_of in told["shards"].items():
        numbers = [told_of["rows"], told_of["size"], told_of["bytes_per_row"]]
        table.add_row(
            shard, told_of["checksum"], *("?" if n is None else f"{n:,.0f}" for n in numbers)
        )
    _say(table)
    for figure, value in sorted(told["metrics"].items()):
        _say(f"{figure:<32}{value:,.4g}")


@versions.command()
def verify(
    recipe: RecipeOption = None,
    model: ModelOption = None,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Read every version, check every checksum, and tell which ones a replica can be brought to.

    Ends with 1 if a version is damaged, or cannot be reached.
    """
    shelf = _shelf(recipe, home, model)
    damaged = {**shelf.damaged, **_damage(shelf)}
    reachable = shelf.reachable(lambda artefact: artefact not in damaged)
    hurt = {_version_of(artefact) for artefact in damaged}
    lost = [name for name in shelf.names if name not in {*reachable, *hurt}]
    if as_json:
        intact = sum(artefact not in damaged for artefact in shelf.artefacts)
        told = {"intact": intact, "damaged": damaged}
        typer.echo(json.dumps({**told, "reachable": reachable, "unreachable": lost}))
    else:
        for artefact, reason in damaged.items():
            _say(f"{artefact} is damaged: {reason}")
        for name in lost:
            _say(f"{name} cannot be reached: a version that it stands on is damaged or gone")
        _say(
            f"{len(reachable):,} of {len({*shelf.names, *hurt}):,} versions can be reached,"
            f" {len(damaged):,} artefacts are damaged."
        )
    if damaged or lost:
        raise typer.Exit(1)


# -- holding -------------------------------------------------------------------------------


@versions.command()
def pin(
    name: Annotated[
        str | None, typer.Argument(help="A version.", show_default="the newest")
    ] = None,
    recipe: RecipeOption = None,
    model: ModelOption = None,
    home: HomeOption = None,
    log: LogOption = None,
    as_json: JsonOption = False,
) -> None:
    """Hold every replica at a version, of now or of before, until `unpin`.

    Training goes on, and its versions are kept for when the replicas follow again.
    """
    shelf = _shelf(recipe, home, model)
    chosen = _newest(shelf) if name is None else shelf.find(name).info.name
    _hold(shelf, chosen, recipe, home, log, as_json=as_json)


@versions.command()
def rollback(  # noqa: PLR0913 - the options of a command line
    name: Annotated[
        str | None, typer.Argument(help="An earlier version.", show_default="by --steps")
    ] = None,
    steps: Annotated[int, typer.Option(min=1, help="So many versions back.")] = 1,
    recipe: RecipeOption = None,
    model: ModelOption = None,
    home: HomeOption = None,
    log: LogOption = None,
    as_json: JsonOption = False,
) -> None:
    """Take every replica back to an earlier version, and hold it there until `unpin`."""
    shelf = _shelf(recipe, home, model)
    order = shelf.names
    current = shelf.pinned or shelf.last_good or _newest(shelf)
    earlier = [
        one
        for one in shelf.reachable()
        if order.index(one) < _place(order, current) and one not in shelf.held
    ]
    if name is not None:
        chosen = shelf.find(name).info.name
        if _place(order, chosen) >= _place(order, current):
            raise ConfigError(
                f"{chosen} is not earlier than {current}: `headrace versions pin {chosen}` goes"
                " there all the same"
            )
    elif len(earlier) < steps:
        raise ConfigError(
            f"{len(earlier)} versions before {current} are left, --steps {steps} asks for more:"
            " `headrace versions list` names them"
        )
    else:
        chosen = earlier[-steps]
    _hold(shelf, chosen, recipe, home, log, as_json=as_json)


@versions.command()
def unpin(
    recipe: RecipeOption = None,
    model: ModelOption = None,
    home: HomeOption = None,
    log: LogOption = None,
    as_json: JsonOption = False,
) -> None:
    """Let replicas follow the newest version again."""
    store = _store(recipe, home)
    model = _model(store, model)
    was = _pinned(store, model)
    store.pin(model, None)
    _ring(model, recipe, home, log)
    if as_json:
        typer.echo(json.dumps({"pinned": None, "was": was}))
    else:
        _say(f"Replicas of {model} follow the newest version again; they were held at {was}.")


def _hold(
    shelf: Shelf,
    name: str,
    recipe: str | None,
    home: Path | None,
    log: str | None,
    *,
    as_json: bool,
) -> None:
    """Holds first and looks then, so that what is looked at cannot be removed any more.

    Raises:
        ArtefactError: the version, or one that it stands on, is damaged; all is as it was.
    """
    shelf.store.pin(shelf.model, name)
    try:
        for link in shelf.store.chain(name):
            shelf.store.read(link)
    except ArtefactError as error:
        shelf.store.pin(shelf.model, shelf.pinned)
        raise ArtefactError(
            f"replicas cannot be held at {name}: {error}; `headrace versions verify` says which"
            " versions are whole"
        ) from error
    _ring(shelf.model, recipe, home, log)
    if as_json:
        typer.echo(json.dumps({"pinned": name, "was": shelf.pinned}))
    else:
        _say(f"Replicas of {shelf.model} are held at {name} until `headrace versions unpin`.")


def _ring(model: str, recipe: str | None, home: Path | None, log: str | None) -> None:
    """Tells replicas to look; without a log they do so by themselves."""
    from trainers.versions import doorbell

    try:
        with closing(chosen_log(log or _recipe_log(recipe), home)) as opened:
            opened.append([doorbell(model)])
    except (ConfigError, LogError) as error:
        _say(f"Replicas notice within 10 s, for the log did not tell them: {error}", error=True)


# -- finding -------------------------------------------------------------------------------


def _shelf(recipe: str | None, home: Path | None, model: str | None) -> Shelf:
    store = _store(recipe, home)
    model = _model(store, model)
    found: list[Stored] = []
    damaged: dict[str, str] = {}
    for artefact in store.artefacts(model):
        try:
            found.append(store.stored(artefact))
        except ArtefactCorrupt as error:
            damaged[artefact] = str(error)
    if not found:
        raise ConfigError(f"there are no versions of {model!r} that can be read: see `verify`")
    # By the store's clock: those of the trainers may differ.
    begun: dict[str, int] = {}
    for stored in found:
        lineage = stored.info.lineage
        begun[lineage] = min(stored.written_us, begun.get(lineage, stored.written_us))
    # Of one number the delta first: it is what the snapshot is told apart from.
    found.sort(
        key=lambda s: (begun[s.info.lineage], s.info.lineage, s.info.number, s.info.base is None)
    )
    return Shelf(store, model, {s.info.artefact: s for s in found}, damaged, _pinned(store, model))


def _store(recipe: str | None, home: Path | None) -> VersionStore:
    from infra.home import Home
    from streaming.artefact_store import open_artefacts
    from trainers.version_store import VersionStore

    place = Home(home or Path(".headrace"))
    if recipe is None:
        return VersionStore(open_artefacts(place.versions))
    from infra.recipe import load_recipe
    from infra.wiring import version_store

    return version_store(load_recipe(recipe), place)


def _recipe_log(recipe: str | None) -> str | None:
    from infra.recipe import load_recipe

    return None if recipe is None else load_recipe(recipe).log


def _model(store: VersionStore, model: str | None) -> str:
    models = sorted(store.models())
    if model in models or (model is None and len(models) == 1):
        return model or models[0]
    if not models:
        raise ConfigError(
            "there are no versions yet: `headrace run` makes them, --home or --recipe says where"
        )
    which = "name one with --model" if model is None else f"there are none of {model!r}"
    raise ConfigError(f"{which}: the store has versions of {', '.join(models)}")


def _pinned(store: VersionStore, model: str) -> str | None:
    from streaming.artefact_store import StoreAway

    try:
        return store.pinned(model)
    except StoreAway:
        raise
    except ArtefactError as error:
        _say(str(error), error=True)
        return None


def _damage(shelf: Shelf) -> dict[str, str]:
    """What is wrong with which artefact; one that was removed meanwhile is not damaged."""
    damaged: dict[str, str] = {}
    for artefact, stored in shelf.artefacts.items():
        try:
            shelf.store.read(stored.info)
        except ArtefactCorrupt as error:
            if artefact in shelf.store.artefacts(shelf.model):
                damaged[artefact] = str(error)
    return damaged


def _newest(shelf: Shelf) -> str:
    reachable = shelf.reachable()
    if not reachable:
        raise ConfigError(f"no version of {shelf.model!r} can be reached: see `verify`")
    return reachable[-1]


def _place(order: Sequence[str], name: str) -> int:
    """Where a version stands; one that is gone stands behind all."""
    return order.index(name) if name in order else len(order)


def _version_of(name: str) -> str:
    """The version that a name, be it an artefact's, names."""
    from trainers.versions import WHOLE

    return name.removesuffix(WHOLE)


def _short_names(name: str) -> Iterable[str]:
    _, lineage, number = name.rsplit("/", 2)
    return f"{lineage}/{number}", number


# -- telling -------------------------------------------------------------------------------


def _told(stored: Stored, shelf: Shelf, reachable: set[str]) -> dict[str, Any]:
    from serving.times import time_text

    info = stored.info
    marks = ["pinned"] if info.name == shelf.pinned else []
    marks += ["newest"] if info.name == shelf.names[-1] else []
    marks += ["held back"] if info.held else ["suspect"] if info.suspect else []
    marks += ["last good"] if info.name == shelf.last_good else []
    marks += [] if info.name in reachable else ["unreachable"]
    return {
        **{k: v for k, v in asdict(info).items() if k != "options"},
        "name": info.artefact,
        "bytes": stored.size,
        "rows": stored.rows,
        "age_s": max(0.0, time.time() - stored.written_us / 1e6),
        "watermark": time_text(info.watermark_us),
        "marks": marks,
    }


def _summary(shelf: Shelf) -> dict[str, Any]:
    reachable = shelf.reachable()
    return {
        "pinned": shelf.pinned,
        "newest": reachable[-1] if reachable else None,
        "held": shelf.held.get(shelf.names[-1]) if shelf.names else None,
        "last_good": shelf.last_good,
        "damaged": shelf.damaged,
    }


def _standing(shelf: Shelf) -> str:
    if shelf.pinned is None and shelf.names and (reason := shelf.held.get(shelf.names[-1])):
        where = "serve what they did" if shelf.last_good is None else f"are at {shelf.last_good}"
        return f"The gate holds the newest back, replicas {where}: {reason}."
    if shelf.pinned is None:
        return "Replicas follow the newest version."
    gone = "" if shelf.pinned in shelf.names else ", which is gone"
    return f"Replicas are held at {shelf.pinned}{gone}, until `headrace versions unpin`."


def _main_figures(metrics: dict[str, float]) -> dict[str, float]:
    recall = next((name for name in metrics if name.startswith("recall@")), None)
    return {name: metrics[name] for name in (recall, "loss") if name in metrics and name}


def _age(seconds: float) -> str:
    for unit, length in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"


def _say(what: str | Table, *, error: bool = False) -> None:
    width = None if sys.stdout.isatty() else 160
    Console(width=width, stderr=error).print(what, highlight=False, soft_wrap=isinstance(what, str))
