"""The examples in the docstrings of the features floor say what is so."""

import doctest
import importlib
import pkgutil

import pytest

import features

MODULES = sorted(m.name for m in pkgutil.walk_packages(features.__path__, "features."))


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_of_a_module_are_true(name: str) -> None:
    assert doctest.testmod(importlib.import_module(name)).failed == 0


def test_there_are_examples() -> None:
    finder = doctest.DocTestFinder(exclude_empty=True)
    found = [test for name in MODULES for test in finder.find(importlib.import_module(name))]
    assert sum(len(test.examples) for test in found) >= 1
