"""Words and hashed character n-grams."""

from __future__ import annotations

import re

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from features.text import hashed_ngrams, hashed_texts, word_ids

TEXTS = st.lists(st.text("abcXYZ019_ .,-éßÄ漢字。—", max_size=12), max_size=8)


@given(TEXTS, st.integers(1, 5))
def test_words_are_what_stands_between_other_signs(texts: list[str], most: int) -> None:
    found = word_ids(texts, most)
    expected = [re.findall(r"\w+", text.casefold())[:most] for text in texts]
    assert found.lengths.tolist() == [len(words) for words in expected]
    flat = [word for words in expected for word in words]
    # A word has one number wherever it stands, and no other word has it.
    assert found.values.tolist() == hashed_texts(flat).tolist()
    assert len(set(found.values.tolist())) == len(set(flat))
    assert (found.values >= 0).all()


@given(TEXTS, st.integers(1, 4))
def test_ngrams_are_the_runs_of_a_text_with_its_marks(texts: list[str], size: int) -> None:
    found = hashed_ngrams(texts, size, 1 << 40)
    marked = [f"\x02{text.casefold()}\x03" for text in texts]
    expected = [[one[i : i + size] for i in range(len(one) - size + 1)] for one in marked]
    assert found.lengths.tolist() == [len(grams) for grams in expected]
    number: dict[str, int] = {}
    for gram, value in zip([g for grams in expected for g in grams], found.values, strict=True):
        assert number.setdefault(gram, value) == value
    assert len(set(number.values())) == len(number)


def test_ngrams_fall_into_all_buckets_alike() -> None:
    grams = np.unique(hashed_ngrams([f"t{n}x" for n in range(20_000)], 7, 1 << 40).values)
    counts = np.bincount(grams % 10, minlength=10)
    assert counts.max() < 1.2 * counts.min()
    assert set(hashed_ngrams(["a longer text"], 3, 4).values.tolist()) == {0, 1, 2, 3}


def test_numbers_do_not_change_between_releases() -> None:
    assert hashed_texts(["Heat", ""]).tolist() == [2433245289155486486, 8147104208329303767]


def test_seeds_tell_equal_texts_apart() -> None:
    seeds = np.array([1, 2], np.uint64)
    a, b = word_ids(["heat", "heat"], 9, seeds).values
    assert a != b
