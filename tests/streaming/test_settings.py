"""Filling Config dataclasses from tables of a recipe."""

from dataclasses import dataclass, field
from typing import Any

import pytest

from streaming.errors import ConfigError
from streaming.settings import fill


@dataclass(frozen=True)
class Inner:
    depth: int = 1


@dataclass(frozen=True)
class Wheel:
    radius: float
    teeth: int = 12
    names: tuple[str, ...] = ("a",)
    inner: Inner = field(default_factory=Inner)
    optional: Inner | None = None
    spares: dict[str, Inner] = field(default_factory=dict)


def test_what_is_absent_has_its_default() -> None:
    assert fill(Wheel, {"radius": 2.5}, "wheel") == Wheel(2.5)


def test_tables_of_tables_become_configs() -> None:
    table = {
        "radius": 1,
        "names": ["x", "y"],
        "inner": {"depth": 3},
        "optional": {"depth": 4},
        "spares": {"one": {"depth": 5}},
    }
    expected = Wheel(1.0, 12, ("x", "y"), Inner(3), Inner(4), {"one": Inner(5)})
    assert fill(Wheel, table, "wheel") == expected


def test_the_table_is_not_changed() -> None:
    table: dict[str, Any] = {"radius": 1, "inner": {"depth": 3}}
    fill(Wheel, table, "wheel")
    assert table == {"radius": 1, "inner": {"depth": 3}}


@pytest.mark.parametrize(
    ("table", "sentence"),
    [
        ({"radius": 1, "theet": 3}, r"^wheel\.theet is not a setting; known are inner, names, "),
        ({"radius": 1, "inner": {"deep": 3}}, r"^wheel\.inner\.deep is not a setting; .*depth"),
        ({"radius": "wide"}, r"^wheel\.radius = 'wide': .*number"),
        ({"radius": 1, "teeth": 1.5}, r"^wheel\.teeth = 1\.5: .*integer"),
        ({"radius": 1, "teeth": None}, r"^wheel\.teeth = None: .*integer"),
        ({"radius": 1, "names": "x"}, r"^wheel\.names = 'x': .*tuple"),
        ({"radius": 1, "inner": {"depth": "x"}}, r"^wheel\.inner\.depth = 'x': .*integer"),
        ({}, r"^wheel\.radius.*required"),
    ],
)
def test_an_error_names_the_setting_and_its_value(table: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        fill(Wheel, table, "wheel")


@pytest.mark.parametrize(
    ("table", "where"),
    [
        ({"radius": 1, "optional": {"depth": 1, "deep": 3}}, r"optional\..*deep"),
        ({"radius": 1, "spares": {"one": {"depth": 1, "deep": 3}}}, r"spares\.one\..*deep"),
    ],
)
def test_an_unknown_setting_is_refused_however_deep_it_lies(
    table: dict[str, Any], where: str
) -> None:
    with pytest.raises(ConfigError, match=where):
        fill(Wheel, table, "wheel")


def test_a_setting_of_the_topmost_table_is_named_without_a_dot() -> None:
    with pytest.raises(ConfigError, match=r"^theet is not a setting"):
        fill(Wheel, {"radius": 1, "theet": 3}, "")
