"""Benchmarks: one object as the last line, and a missed promise is a failure."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import SimpleNamespace

import pytest
from pydantic import PositiveInt
from rich.console import Console

from infra import bench
from streaming.errors import ConfigError


@pytest.fixture
def console() -> Console:
    return Console(file=io.StringIO(), width=120)


def pretend(monkeypatch: pytest.MonkeyPatch, promises: dict[str, tuple[float, float]]) -> None:
    """A benchmark `pretended` that measures speed = 7."""
    module = SimpleNamespace(run=lambda _report: {"speed": 7.0}, PROMISES=promises)
    monkeypatch.setattr(bench, "_names", lambda: ["pretended"])
    monkeypatch.setattr(bench, "_module", lambda _name: module)


def test_the_last_line_is_one_json_object(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], console: Console
) -> None:
    pretend(monkeypatch, {"speed": (5.0, 9.0)})
    assert bench.run_benchmark("pretended", console, as_json=True)
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert found["name"] == "pretended"
    assert found["figures"] == {"speed": 7.0}
    assert found["machine"]["cores"] >= 1


@pytest.mark.parametrize("bounds", [(7.1, 9.0), (0.0, 6.9)])
def test_a_missed_promise_is_a_failure_and_is_named(
    monkeypatch: pytest.MonkeyPatch, console: Console, bounds: tuple[float, float]
) -> None:
    pretend(monkeypatch, {"speed": bounds})
    assert not bench.run_benchmark("pretended", console, as_json=False)
    assert isinstance(console.file, io.StringIO)
    assert "missed: speed = 7" in console.file.getvalue()


def test_a_figure_that_is_not_a_number_misses_its_promise(
    monkeypatch: pytest.MonkeyPatch, console: Console
) -> None:
    pretend(monkeypatch, {"speed": (float("nan"), 9.0)})
    assert not bench.run_benchmark("pretended", console, as_json=False)


def test_an_unknown_benchmark_names_the_known_ones(console: Console) -> None:
    with pytest.raises(ConfigError, match="frequency"):
        bench.run_benchmark("speed-of-light", console, as_json=False)


@dataclass(frozen=True)
class Config:
    size: PositiveInt = 1
    models: tuple[str, ...] = ()
    table: Mapping[str, float] = field(default_factory=dict)


def settable(monkeypatch: pytest.MonkeyPatch) -> list[Config]:
    """A benchmark `settable` that keeps the configs that it is run with."""
    given: list[Config] = []

    def run(_report: object, config: Config | None = None) -> dict[str, float]:
        given.append(config or Config())
        return {"size": float(given[-1].size)} if config else {"size": 1.0, "whole": 1.0}

    promises = {"size": (0.0, 3.0), "whole": (0.0, 1.0)}
    module = SimpleNamespace(run=run, PROMISES=promises, Config=Config)
    monkeypatch.setattr(bench, "_names", lambda: ["settable"])
    monkeypatch.setattr(bench, "_module", lambda _name: module)
    return given


def test_settings_are_lines_of_toml_in_which_text_needs_no_quotes(
    monkeypatch: pytest.MonkeyPatch, console: Console
) -> None:
    given = settable(monkeypatch)
    words = ["2", 'models=["a", "b"]', "table.x=0.5", "table.y=2"]
    assert bench.run_benchmark("settable", console, words, as_json=False)
    assert given == [Config(2, ("a", "b"), {"x": 0.5, "y": 2.0})]


def test_a_part_promises_only_what_it_measures(
    monkeypatch: pytest.MonkeyPatch, console: Console
) -> None:
    settable(monkeypatch)
    assert bench.run_benchmark("settable", console, as_json=False)
    assert bench.run_benchmark("settable", console, ["size=3"], as_json=False)
    assert not bench.run_benchmark("settable", console, ["size=4"], as_json=False)


@pytest.mark.parametrize(
    ("words", "names"), [(["width=3"], "width"), (["size=0"], "size"), (["si ze=3"], "si ze")]
)
def test_a_setting_that_is_not_there_or_does_not_fit_is_named(
    monkeypatch: pytest.MonkeyPatch, console: Console, words: list[str], names: str
) -> None:
    settable(monkeypatch)
    with pytest.raises(ConfigError, match=names):
        bench.run_benchmark("settable", console, words, as_json=False)


def test_a_benchmark_without_settings_takes_none(
    monkeypatch: pytest.MonkeyPatch, console: Console
) -> None:
    pretend(monkeypatch, {})
    with pytest.raises(ConfigError, match="'pretended' has no settings"):
        bench.run_benchmark("pretended", console, ["size=3"], as_json=False)


def test_every_benchmark_says_what_it_measures_and_promises() -> None:
    for name in bench._names():
        module = bench._module(name)
        assert bench._summary(module)
        assert module.PROMISES
        assert callable(module.run)
