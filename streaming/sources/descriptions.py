"""What the planted world says of itself in words: attributes, titles and queries.

All of it is a noisy view of the topics, so that content tells something of taste, never all.
"""

from __future__ import annotations

import json

import numpy as np

from streaming.sources.chance import Ints, picked, uniform
from streaming.sources.population import AGES, GENDERS, Items, Population, Users

WORDS = 12  # of each topic
_TITLE_WORDS = 4
_TOPICS_IN_CATEGORY = 4
_BRANDS = 3  # of each topic
_SYLLABLES = [c + v for c in "bdfgklmnprstvz" for v in "aeiou"]
_INCOMES = ("low", "middle", "high")


class Descriptions:
    """Attributes of users and items, and queries, by number."""

    def __init__(self, population: Population) -> None:
        self._population = population
        self._seed = population.seed
        self._noise = population.config.noise
        self._topics = population.config.topics
        self.words = [_word(n) for n in range(self._topics * WORDS)]
        # A query is one or two words of its topic: the second one may be missing.
        self.queries = [
            word if second == WORDS else f"{word} {self.words[n // WORDS * WORDS + second]}"
            for n, word in enumerate(self.words)
            for second in range(WORDS + 1)
        ]

    def query_numbers(self, topics: Ints, rng: np.random.Generator) -> Ints:
        """A query for each topic, as its place in `queries`; a topic's first words are likelier."""
        first = (WORDS * rng.random(len(topics)) ** 2).astype(np.int64)
        second = np.where(rng.random(len(topics)) < 0.5, WORDS, rng.integers(0, WORDS, len(topics)))
        return (topics * WORDS + first) * (WORDS + 1) + second

    def of_users(self, users: Users) -> list[str]:
        """The attributes of users as JSON."""
        s, n = self._seed, users.number
        income = np.digitize(users.means + 0.5 * (uniform(s, "income", n) - 0.5), [-0.5, 0.5])
        region = (8 * uniform(s, "region", n) ** 1.5).astype(int)
        return [
            json.dumps(
                {
                    "age": AGES[cell // len(GENDERS)],
                    "gender": GENDERS[cell % len(GENDERS)],
                    "income": _INCOMES[bracket],
                    "region": f"region-{place}",
                }
            )
            for cell, bracket, place in zip(
                users.cell.tolist(), income.tolist(), region.tolist(), strict=True
            )
        ]

    def of_items(self, items: Items) -> list[str]:
        """The attributes of items as JSON."""
        s, n = self._seed, items.number
        category = self._noisy("category", n, items.topic) // _TOPICS_IN_CATEGORY
        brand = self._noisy("brand", n, items.topic) * _BRANDS
        brand += (_BRANDS * uniform(s, "brand", n)).astype(np.int64)
        places = np.arange(_TITLE_WORDS)
        topics = self._noisy("word", n[:, None], items.topic[:, None], places)
        words = topics * WORDS + (WORDS * uniform(s, "word", n[:, None], places)).astype(np.int64)
        rows = zip(category.tolist(), brand.tolist(), words.tolist(), items.price.tolist(),
                   items.length_s.tolist(), strict=True)  # fmt: skip
        return [
            json.dumps(
                {
                    "title": " ".join(self.words[w] for w in row_words).capitalize(),
                    "category": f"category-{row_category}",
                    "brand": f"brand-{row_brand}",
                    "words": [self.words[w] for w in row_words],
                    "price": price,
                    "length_s": length_s,
                }
            )
            for row_category, row_brand, row_words, price, length_s in rows
        ]

    def _noisy(self, what: str, numbers: Ints, topics: Ints, places: Ints | int = 0) -> Ints:
        """The topics, some of them replaced by any."""
        any_topic = picked(
            self._population.topic_weights, uniform(self._seed, f"any {what}", numbers, places)
        )
        lost = uniform(self._seed, f"lost {what}", numbers, places) < self._noise
        return np.where(lost, any_topic, topics)


def _word(number: int) -> str:
    """A made-up word; numbers below 343,000 have words of their own."""
    place = number * 100_003 % len(_SYLLABLES) ** 3
    high, rest = divmod(place, len(_SYLLABLES) ** 2)
    return _SYLLABLES[high] + "".join(_SYLLABLES[p] for p in divmod(rest, len(_SYLLABLES)))
