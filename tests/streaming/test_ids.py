"""Stable ids."""

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streaming.ids import stable_id, stable_ids


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("", 0x2D06800538D394C2 >> 1),
        ("318", 4695433726901755505),
        ("Amélie 😀", 7043088538899985291),
        ("year=1994", 2753995954633506108),
    ],
)
def test_an_id_is_this_number_in_every_release(text: str, number: int) -> None:
    assert stable_id(text) == number


def test_an_id_does_not_depend_on_the_process() -> None:
    program = "from streaming.ids import stable_id; print(stable_id('u/1'))"
    for seed in ("1", "2"):
        told = subprocess.check_output(
            [sys.executable, "-c", program], env={"PYTHONHASHSEED": seed}, text=True
        )
        assert int(told) == stable_id("u/1")


@given(st.text())
def test_an_id_fits_a_signed_64_bit_column(text: str) -> None:
    assert 0 <= stable_id(text) < 2**63


def test_all_63_bits_are_used_and_a_million_ids_are_distinct() -> None:
    ids = stable_ids(str(n) for n in range(1_000_000))
    assert ids.dtype == np.int64
    assert len(np.unique(ids)) == 1_000_000
    ones = [int(((ids >> bit) & 1).sum()) for bit in range(63)]
    assert min(ones) > 497_000
    assert max(ones) < 503_000


@given(st.lists(st.text()))
def test_many_ids_are_the_single_ones(texts: list[str]) -> None:
    assert stable_ids(texts).tolist() == [stable_id(text) for text in texts]
