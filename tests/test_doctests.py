"""The examples in the docstrings of every floor say what is so."""

import doctest
import importlib
import pkgutil

import pytest

EXAMPLES_AT_LEAST = {"streaming": 3, "features": 1, "trainers": 1, "serving": 1}


def modules(floor: str) -> list[str]:
    """Every module of a floor by its dotted name."""
    package = importlib.import_module(floor)
    return sorted(m.name for m in pkgutil.walk_packages(package.__path__, f"{floor}."))


@pytest.mark.parametrize("name", [name for floor in EXAMPLES_AT_LEAST for name in modules(floor)])
def test_the_examples_of_a_module_are_true(name: str) -> None:
    assert doctest.testmod(importlib.import_module(name)).failed == 0


@pytest.mark.parametrize("floor", EXAMPLES_AT_LEAST)
def test_there_are_examples(floor: str) -> None:
    finder = doctest.DocTestFinder(exclude_empty=True)
    found = [test for name in modules(floor) for test in finder.find(importlib.import_module(name))]
    assert sum(len(test.examples) for test in found) >= EXAMPLES_AT_LEAST[floor]
