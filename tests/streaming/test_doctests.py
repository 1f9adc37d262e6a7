"""The examples in the docstrings of the ground floor say what is so."""

import doctest
import importlib
import pkgutil

import pytest

import streaming

MODULES = sorted(m.name for m in pkgutil.walk_packages(streaming.__path__, "streaming."))


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_of_a_module_are_true(name: str) -> None:
    assert doctest.testmod(importlib.import_module(name)).failed == 0


def test_there_are_examples() -> None:
    finder = doctest.DocTestFinder(exclude_empty=True)
    found = [test for name in MODULES for test in finder.find(importlib.import_module(name))]
    assert sum(len(test.examples) for test in found) >= 3
