"""What ranks tell one another: all of it arrives, in any order of asking; a loss is noticed."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.distributed import HashStore  # type: ignore[attr-defined]

from trainers.exchange import Exchange, Ids, PeerLost, connect

Together = Callable[..., list[Any]]
RANKS = [1, 2, 3, 4]
LONG_S = 600.0  # longer than any test may take


def arrays_of(rank: int) -> list[NDArray[Any]]:
    """Other lengths in every rank, some 0."""
    rng = np.random.default_rng(rank)
    return [
        rng.integers(1 << 62, size=3 * rank),
        rng.random((2 - rank % 3, 5), np.float32),
        rng.integers(255, size=7 * (rank % 2), dtype=np.uint8),
        rng.random((rank, 2, 3)),
        rng.random(4) < 0.5,
    ]


@pytest.mark.parametrize("ranks", RANKS)
def test_every_rank_hears_the_arrays_of_all(ranks: int, together: Together) -> None:
    for heard in together(ranks, lambda exchange: exchange.share(arrays_of(exchange.rank))):
        assert len(heard) == ranks
        for rank, arrays in enumerate(heard):
            for array, expected in zip(arrays, arrays_of(rank), strict=True):
                assert array.dtype == expected.dtype
                np.testing.assert_array_equal(array, expected, strict=True)


def test_ranks_that_have_nothing_hear_nothing(together: Together) -> None:
    nothing = [np.empty(0, np.int64), np.empty((0, 4), np.float32)]
    for heard in together(3, lambda exchange: exchange.share(nothing)):
        assert [[array.shape for array in arrays] for arrays in heard] == [[(0,), (0, 4)]] * 3


def test_what_was_heard_is_ones_own(together: Together) -> None:
    def change(exchange: Exchange) -> tuple[list[NDArray[Any]], list[list[NDArray[Any]]]]:
        mine: list[NDArray[Any]] = [np.arange(4), np.ones((2, 2), np.float32)]
        heard = exchange.share(mine)
        for arrays in heard:
            for array in arrays:
                np.add(array, 7, out=array)
        return mine, heard

    for mine, heard in together(2, change):
        assert mine[0].tolist() == [0, 1, 2, 3]
        assert [arrays[0].tolist() for arrays in heard] == [[7, 8, 9, 10]] * 2


@pytest.mark.parametrize("ranks", RANKS)
def test_sums_are_those_of_all_ranks(ranks: int, together: Together) -> None:
    def add(exchange: Exchange) -> list[Tensor]:
        tensors = [
            torch.full((3,), float(exchange.rank)),
            torch.full((2, 2), 10.0),
            torch.empty(0),
            torch.tensor(exchange.rank / 2),
        ]
        exchange.add_up(tensors)
        exact = [torch.tensor([1.0, 1e-12], dtype=torch.float64)]
        exchange.add_up(exact)
        return tensors + exact

    total = sum(range(ranks))
    for ones, tens, nothing, scalar, exact in together(ranks, add):
        assert ones.tolist() == [total] * 3
        assert tens.tolist() == [[10.0 * ranks] * 2] * 2
        assert nothing.shape == (0,)
        assert scalar.item() == total / 2
        assert exact[1].item() == pytest.approx(ranks * 1e-12)


def sizes(seed: int, ranks: int) -> Ids:
    """How much each rank sends to each, with many that send nothing."""
    return np.random.default_rng(seed).integers(-3, 5, size=(ranks, ranks)).clip(0)


@pytest.mark.parametrize("ranks", RANKS)
def test_all_numbers_come_to_where_they_were_sent(ranks: int, together: Together) -> None:
    plans = [*(sizes(seed, ranks) for seed in range(8)), np.zeros((ranks, ranks), np.int64)]

    def swap(exchange: Exchange) -> list[Tensor]:
        return [
            exchange.swap(
                torch.from_numpy(
                    np.repeat(100 * exchange.rank + np.arange(ranks), plan[exchange.rank])
                ),
                plan[exchange.rank].tolist(),
                plan[:, exchange.rank].tolist(),
            )
            for plan in plans
        ]

    for rank, received in enumerate(together(ranks, swap)):
        for got, plan in zip(received, plans, strict=True):
            expected = np.repeat(100 * np.arange(ranks) + rank, plan[:, rank])
            assert got.tolist() == expected.tolist()


# Questions


class Tenfold:
    """Answers an id with ten times it, and with who asked and who answers."""

    width = 3
    columns = 1

    def __init__(self, rank: int) -> None:
        self._rank = rank

    def __call__(self, rank: int, question: Ids) -> Tensor:
        (ids,) = question
        return torch.tensor([[10.0 * i, rank, self._rank] for i in ids.tolist()])


class Product:
    """Answers an id and a number with their product."""

    width = 1
    columns = 2

    def __call__(self, rank: int, question: Ids) -> Tensor:
        return torch.from_numpy(question[0] * question[1]).float()[:, None]


class Asking:
    """A rank that asks questions about so many ids of every rank."""

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange
        exchange.services += [Tenfold(exchange.rank), Product()]

    def tenfold(self, counts: Sequence[int]) -> None:
        ids = np.arange(sum(counts))
        answers = self._exchange.ask(0, ids[None, :], np.array(counts))
        of = np.repeat(np.arange(len(counts)), counts)
        expected = [[10.0 * i, self._exchange.rank, rank] for i, rank in enumerate(of.tolist())]
        assert answers.shape == (len(ids), 3)
        assert answers.tolist() == expected

    def product(self, counts: Sequence[int]) -> None:
        ids = np.arange(sum(counts))
        answers = self._exchange.ask(1, np.stack([ids, ids + 1]), np.array(counts))
        assert answers.tolist() == [[float(i * (i + 1))] for i in ids.tolist()]


def test_ranks_may_ask_different_things_and_one_may_ask_nothing(together: Together) -> None:
    def ask(exchange: Exchange) -> list[list[NDArray[Any]]]:
        asking = Asking(exchange)
        if exchange.rank == 0:
            asking.tenfold([2, 1, 3])
            asking.product([0, 4, 1])
            asking.tenfold([1, 0, 0])
        if exchange.rank == 1:
            asking.product([5, 0, 0])
            asking.product([0, 0, 0])  # about nothing: it is a question all the same
        exchange.meet()
        return exchange.share([np.array([exchange.rank])])

    for heard in together(3, ask):  # whatever was asked, they are in step again
        assert [arrays[0].tolist() for arrays in heard] == [[0], [1], [2]]


@pytest.mark.parametrize("ranks", RANKS)
def test_any_number_of_questions_in_any_order(ranks: int, together: Together) -> None:
    def ask(exchange: Exchange) -> int:
        asking, rng = Asking(exchange), np.random.default_rng(exchange.rank)
        asked = 0
        for _ in range(12):
            for _ in range(rng.integers(0, 5)):
                counts = rng.integers(-2, 4, size=ranks).clip(0).tolist()
                (asking.tenfold if rng.random() < 0.5 else asking.product)(counts)
                asked += 1
            exchange.meet()
        return asked

    asked = together(ranks, ask)
    assert ranks == 1 or len({*asked}) > 1, "all have asked as often"


def test_ranks_that_have_nothing_to_ask_meet_at_once(together: Together) -> None:
    def meet(exchange: Exchange) -> bool:
        Asking(exchange)
        exchange.meet()
        exchange.meet()
        return True

    assert together(4, meet) == [True] * 4


# A rank that is no more

SAYING: dict[str, Callable[[Exchange], Any]] = {
    "share": lambda exchange: exchange.share([np.arange(exchange.rank + 1)]),
    "add_up": lambda exchange: exchange.add_up([torch.ones(3)]),
    "swap": lambda exchange: exchange.swap(
        torch.ones(exchange.size), [1] * exchange.size, [1] * exchange.size
    ),
    "meet": lambda exchange: exchange.meet(),
}


@pytest.mark.parametrize("saying", SAYING)
@pytest.mark.parametrize(("ranks", "lost"), [(2, 0), (2, 1), (4, 0), (4, 2)])
def test_all_others_hear_at_once_that_a_rank_has_left(
    ranks: int, lost: int, saying: str, together: Together
) -> None:
    def stay_or_leave(exchange: Exchange) -> str:
        exchange.share([np.arange(3)])
        if exchange.rank == lost:
            exchange.leave()
            return "left"
        with pytest.raises(PeerLost) as told:
            SAYING[saying](exchange)
        return str(told.value)

    told = together(ranks, stay_or_leave, within_s=LONG_S)
    assert told[lost] == "left"
    for rank in {*range(ranks)} - {lost}:
        assert told[rank].startswith(f"rank {rank} of {ranks} no longer hears the others: ")


@pytest.mark.parametrize("saying", SAYING)
def test_a_rank_that_is_silent_for_too_long_is_lost(saying: str, together: Together) -> None:
    noticed = [threading.Event() for _ in range(3)]

    def speak_or_not(exchange: Exchange) -> None:
        exchange.share([np.arange(3)])
        if exchange.rank == 1:
            assert noticed[0].wait(LONG_S)
            assert noticed[2].wait(LONG_S)
            return
        with pytest.raises(PeerLost):
            SAYING[saying](exchange)
        noticed[exchange.rank].set()

    together(3, speak_or_not, within_s=0.5)


def test_a_rank_that_never_comes_is_lost() -> None:
    with pytest.raises(PeerLost, match="rank 0 of 2 no longer hears the others"):
        connect(HashStore(), "127.0.0.1", 0, 2, within_s=0.2)
