"""What the ranks of a trainer group tell one another, over a process group of torch.distributed.

Every rank calls `share`, `add_up`, `swap` and `meet` in the same order as all others. Between two
of these it may `ask` for rows as often as it likes, and others may not at all: questions go in
rounds, in each of which every rank has one or has done, and answers those of all others.
"""

from __future__ import annotations

import ctypes
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, Protocol

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor
from torch.distributed.distributed_c10d import Store

Ids = NDArray[np.int64]
_READY_S = 0.02
_yield_core = ctypes.CDLL(None).sched_yield  # unlike os.sched_yield without Python's lock
_DONE = -1  # in the place of a service's number
# What goes with the first message, as most of it is short: bytes that are shared, and numbers of a
# question. A message costs more than this much of one.
_FIRST, _QUESTION = 4_096, 1_024


class PeerLost(RuntimeError):
    """Another rank died, or did not answer in time; this one must start again with all others."""


class Service(Protocol):
    """What a rank answers to questions about ids."""

    width: int  # numbers in the answer to one id
    columns: int  # numbers that tell of one id in a question

    def __call__(self, rank: int, question: Ids) -> Tensor:
        """(n, width) float32, to n ids in a question (columns, n) from a rank."""
        ...


class Exchange:
    """One rank's end of all-to-all messages; `services` must be the same on all ranks."""

    def __init__(self, group: Any, device: str = "cpu") -> None:
        self.rank, self.size = group.rank(), group.size()
        self.services: list[Service] = []
        self.is_idle = False  # messages are few, and may come late
        self._group = group
        self._device = torch.device(device)

    def share(self, arrays: Sequence[NDArray[Any]]) -> list[list[NDArray[Any]]]:
        """Every rank's arrays, by rank: as many, of the same types and widths, of any length."""
        mine = [np.ascontiguousarray(array) for array in arrays]
        data = np.frombuffer(b"".join(array.tobytes() for array in mine), np.uint8)
        sizes = np.array([array.nbytes for array in mine]).view(np.uint8)
        first, rest = data[:_FIRST], data[_FIRST:]
        first = np.concatenate([sizes, first, np.zeros(_FIRST - first.size, np.uint8)])
        told = self._gather(first)
        lengths = told[:, : sizes.size].copy().view(np.int64)  # (ranks, arrays)
        told = told[:, sizes.size :]
        longest = int(lengths.sum(1).max()) - _FIRST
        if longest > 0:
            rest = np.concatenate([rest, np.zeros(longest - rest.size, np.uint8)])
            told = np.concatenate([told, self._gather(rest)], axis=1)
        return [_parted(row, of_rank, mine) for row, of_rank in zip(told, lengths, strict=True)]

    def add_up(self, tensors: Sequence[Tensor]) -> None:
        """Each tensor becomes the sum of those of all ranks."""
        flat = torch.cat([tensor.reshape(-1) for tensor in tensors]).to(self._device)
        with self._heard():
            self._group.allreduce([flat]).wait()  # to look at it first hides a lost rank
        for tensor, total in zip(
            tensors, torch.split(flat, [t.numel() for t in tensors]), strict=True
        ):
            tensor.copy_(total.view_as(tensor))

    def swap(self, mine: Tensor, to: Sequence[int], of: Sequence[int]) -> Tensor:
        """Sends `to[r]` numbers to rank r, one rank's after the other's; gets `of[r]` from it."""
        mine = mine.to(self._device)
        theirs = torch.empty(sum(of), dtype=mine.dtype, device=self._device)
        with self._heard():
            self._wait(self._group.alltoall_base(theirs, mine, list(of), list(to)))
        return theirs

    def ask(self, service: int, question: Ids, counts: Ids) -> Tensor:
        """The answers (n, width) of the ranks to a question (columns, n) about n ids.

        The first `counts[0]` ids are for rank 0, the next for rank 1, and so on.
        """
        answers = self._round(service, question, counts)
        if answers is None:
            raise AssertionError("a rank that asks has not done")
        return answers

    def meet(self) -> None:
        """Answers questions until no rank has any more."""
        nothing = np.zeros(self.size, np.int64)
        while self._round(_DONE, np.empty((1, 0), np.int64), nothing) is not None:
            pass

    def leave(self) -> None:
        """Hangs up: all others lose this rank at once."""
        self._group = None

    def _round(self, service: int, question: Ids, counts: Ids) -> Tensor | None:
        """One question of each rank and its answers; None if no rank has one."""
        parts = [part.reshape(-1) for part in np.split(question, np.cumsum(counts)[:-1], axis=1)]
        asked = self._swap_questions(service, counts, parts)
        if all(number == _DONE for number, _ in asked):
            return None
        answers = [
            self.services[number](rank, part).reshape(-1).to(self._device)
            for rank, (number, part) in enumerate(asked)
            if part.size
        ]
        width = 1 if service == _DONE else self.services[service].width
        told = torch.cat(answers) if answers else torch.empty(0, device=self._device)
        sizes = [
            part.shape[1] * self.services[number].width if part.size else 0
            for number, part in asked
        ]
        return self.swap(told, sizes, (counts * width).tolist()).view(-1, width)

    def _swap_questions(
        self, service: int, counts: Ids, parts: Sequence[Ids]
    ) -> list[tuple[int, Ids]]:
        """What every rank asks of this one: which service, and (columns, n) numbers."""
        longest = max(part.size for part in parts)
        heads = np.zeros((self.size, 3 + _QUESTION), np.int64)
        for head, count, part in zip(heads, counts, parts, strict=True):
            head[:3] = service, count, longest
            head[3 : 3 + part.size] = part[:_QUESTION]
        width = [heads.shape[1]] * self.size
        told = self.swap(torch.from_numpy(heads.reshape(-1)), width, width)
        heads = told.cpu().numpy().reshape(heads.shape)
        columns = [1 if n == _DONE else self.services[n].columns for n in heads[:, 0]]
        sizes = (heads[:, 1] * columns).tolist()
        rests = [np.empty(0, np.int64)] * self.size
        if heads[:, 2].max() > _QUESTION:
            rest = torch.from_numpy(np.concatenate([part[_QUESTION:] for part in parts]))
            to = [max(0, part.size - _QUESTION) for part in parts]
            of = [max(0, size - _QUESTION) for size in sizes]
            rests = np.split(self.swap(rest, to, of).cpu().numpy(), np.cumsum(of)[:-1])
        return [
            (int(head[0]), np.concatenate([head[3 : 3 + size], rest]).reshape(of_one, -1))
            for head, size, rest, of_one in zip(heads, sizes, rests, columns, strict=True)
        ]

    def _gather(self, mine: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """As many bytes from every rank, one rank's in a row."""
        told = torch.from_numpy(np.tile(mine, self.size))
        size = [mine.size] * self.size
        gathered: NDArray[np.uint8] = self.swap(told, size, size).cpu().numpy()
        return gathered.reshape(self.size, -1)

    def _wait(self, work: dist.Work) -> None:
        """Until a message is through: for a while ready for it, then asleep.

        A thread that sleeps is woken late when others compute, and there are many messages a step.
        To yield leaves the core to those of torch that send and receive.
        """
        deadline = time.perf_counter() + (0.0 if self.is_idle else _READY_S)
        while not work.is_completed() and time.perf_counter() < deadline:
            _yield_core()
        work.wait()

    @contextmanager
    def _heard(self) -> Iterator[None]:
        try:
            with _named(self.rank, self.size):
                yield
        except PeerLost:
            self.leave()  # not all wait for the rank that is lost, some wait for this one
            raise


def connect(
    store: Store, host: str, rank: int, size: int, within_s: float, device: str = "cpu"
) -> Exchange:
    """Meets the other ranks in a store; one that is silent for so long is lost.

    `host` is this machine's address, to which the others connect. Messages go by gloo, and from
    GPU to GPU by NCCL.

    Raises:
        PeerLost: another rank does not come.
    """
    timeout = timedelta(seconds=within_s)
    group: Any
    options: Any
    with _named(rank, size):
        if device == "cpu":
            options = dist.ProcessGroupGloo._Options()  # type: ignore[attr-defined]
            options._devices = [dist.ProcessGroupGloo.create_device(hostname=host)]
            options._timeout = timeout
            group = dist.ProcessGroupGloo(store, rank, size, options)
        else:
            options = dist.ProcessGroupNCCL.Options()
            options._timeout = timeout
            group = dist.ProcessGroupNCCL(store, rank, size, options)
    return Exchange(group, device)


@contextmanager
def _named(rank: int, size: int) -> Iterator[None]:
    """Torch's errors as ours."""
    try:
        yield
    except RuntimeError as error:
        raise PeerLost(f"rank {rank} of {size} no longer hears the others: {error}") from error


def _parted(
    row: NDArray[np.uint8], lengths: Sequence[int], like: Sequence[NDArray[Any]]
) -> list[NDArray[Any]]:
    """The arrays whose bytes lie in a row, of the types and widths of those they are like."""
    ends = np.cumsum([0, *lengths]).tolist()
    return [
        row[start:end].copy().view(array.dtype).reshape(-1, *array.shape[1:])
        for array, start, end in zip(like, ends[:-1], ends[1:], strict=True)
    ]
