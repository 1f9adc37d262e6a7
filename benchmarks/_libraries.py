"""Models of other libraries, fitted on samples: implicit's ALS and BPR, RecBole's SASRec.

`make peers` installs them. They get the threads that torch has.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks._rankers import Fitted, Scores, Taken, newest
from features.batch import Ids, Jagged

_WIDTH = 64
_SEED = 1
_NEWEST, _READ = 20_000, 20  # samples that SASRec is fitted on, actions that it reads


@dataclass(frozen=True)
class Factors:
    """Item vectors (n, d), and what finds the vectors (B, d) of users with their histories."""

    items: NDArray[np.float32]
    embed: Callable[[Ids, Jagged], NDArray[np.float32]]

    def scores(self, users: Ids, history: Jagged) -> Scores:
        known = history.where(history.values < len(self.items))
        found: Scores = self.embed(users, known) @ self.items.T
        return found


def als(taken: Taken) -> Fitted:
    """Hu, Koren and Volinsky, "Collaborative Filtering for Implicit Feedback Datasets", ICDM 2008.

    A user's vector is computed from his history, as of now.
    """
    from implicit.als import AlternatingLeastSquares

    model = AlternatingLeastSquares(
        factors=_WIDTH, iterations=15, random_state=_SEED, num_threads=torch.get_num_threads()
    )
    model.fit(_matrix(taken)[0], show_progress=False)
    items = np.asarray(model.item_factors)

    def embed(users: Ids, history: Jagged) -> NDArray[np.float32]:
        rows = _rows(history, np.ones(len(history.values), np.float32), len(items))
        found: NDArray[np.float32] = model.recalculate_user(np.arange(len(users)), rows)
        return found

    return Factors(items, embed)


def bpr(taken: Taken) -> Fitted:
    """Rendle et al., "BPR: Bayesian Personalized Ranking from Implicit Feedback", UAI 2009.

    It cannot compute the vector of a user whom it was not fitted on: he has the mean of his items.
    """
    from implicit.bpr import BayesianPersonalizedRanking

    model = BayesianPersonalizedRanking(
        factors=_WIDTH, random_state=_SEED, num_threads=torch.get_num_threads()
    )
    matrix, ids = _matrix(taken)
    model.fit(matrix, show_progress=False)
    items, vectors = np.asarray(model.item_factors), np.asarray(model.user_factors)

    def embed(users: Ids, history: Jagged) -> NDArray[np.float32]:
        found = np.zeros((len(users), items.shape[1]), np.float32)
        np.add.at(found, history.owners(), items[history.values])
        found /= np.maximum(history.lengths, 1)[:, None]
        found[:, -1] = 1.0  # the last number of an item is its bias
        at = np.minimum(np.searchsorted(ids, users), len(ids) - 1)
        fitted = ids[at] == users
        found[fitted] = vectors[at[fitted]]
        return found

    return Factors(items, embed)


def sasrec(taken: Taken, epochs: int = 2, batch: int = 128) -> Fitted:
    """Kang and McAuley, "Self-Attentive Sequential Recommendation", ICDM 2018: RecBole's model, of
    the size and with the loss (softmax over all items) of its own settings, learnt by Adam. It sees
    the newest samples, and of each the newest actions, so that a fit takes a minute or two.
    """
    from recbole.model.sequential_recommender.sasrec import SASRec

    torch.autograd.set_detect_anomaly(False)  # which the import turns on, for the whole process
    with torch.random.fork_rng():
        torch.manual_seed(_SEED)
        model = SASRec(_SASREC, _Items(taken.items + 1))
        optimiser = torch.optim.Adam(model.parameters(), lr=1e-3)
        pleased = (taken.rewards > 0) & (taken.history.lengths > 0)
        chosen = np.flatnonzero(pleased)[-_NEWEST:]
        random = np.random.default_rng(_SEED)
        for _ in range(epochs):
            for rows in _batches(random.permutation(chosen), batch):
                sequences, lengths = _sequences(taken.history.take(rows))
                targets = torch.from_numpy(taken.places[rows] + 1)
                optimiser.zero_grad()
                model.calculate_loss(
                    {"item_id_list": sequences, "item_length": lengths, "item_id": targets}
                ).backward()
                optimiser.step()
    model.eval()

    @torch.no_grad()
    def embed(_users: Ids, history: Jagged) -> NDArray[np.float32]:
        sequences, lengths = _sequences(history)
        found: NDArray[np.float32] = model(sequences, lengths.clamp(min=1)).numpy()
        return found * (history.lengths > 0)[:, None]

    return Factors(model.item_embedding.weight.detach().numpy()[1:], embed)


# Each by name, and every how many days it is fitted anew.
LIBRARIES: dict[str, tuple[Callable[[Taken], Fitted], int]] = {
    "als": (als, 1),
    "bpr": (bpr, 1),
    "recbole_sasrec": (sasrec, 7),
}

_SASREC: dict[str, Any] = {
    "USER_ID_FIELD": "user_id",
    "ITEM_ID_FIELD": "item_id",
    "LIST_SUFFIX": "_list",
    "ITEM_LIST_LENGTH_FIELD": "item_length",
    "NEG_PREFIX": "neg_",
    "MAX_ITEM_LIST_LENGTH": _READ,
    "device": "cpu",
    "n_layers": 2,
    "n_heads": 2,
    "hidden_size": _WIDTH,
    "inner_size": 256,
    "hidden_dropout_prob": 0.5,
    "attn_dropout_prob": 0.5,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-12,
    "initializer_range": 0.02,
    "loss_type": "CE",
}


@dataclass(frozen=True)
class _Items:
    """As much of RecBole's dataset as its model asks for."""

    count: int

    def num(self, _field: str) -> int:
        return self.count


def _matrix(taken: Taken) -> tuple[Any, Ids]:
    """The rewards as a sparse matrix (U, n) of what pleased, and the ids (U,) of its users."""
    from scipy.sparse import csr_matrix

    ids, users = np.unique(taken.users, return_inverse=True)
    shape = (len(ids), taken.items)
    matrix = csr_matrix((taken.rewards, (users, taken.places)), shape=shape)
    matrix.eliminate_zeros()
    return matrix, ids


def _rows(lists: Jagged, values: NDArray[np.float32], columns: int) -> Any:
    from scipy.sparse import csr_matrix

    shape = (len(lists.lengths), columns)
    return csr_matrix((values, lists.values, lists.offsets), shape=shape)


def _sequences(history: Jagged) -> tuple[torch.Tensor, torch.Tensor]:
    """(B, L), each from the left and 0 behind its end, and their lengths (B,)."""
    history = newest(history, _READ)
    padded = np.zeros((len(history.lengths), max(1, history.lengths.max())), np.int64)
    rows = history.owners()
    columns = np.arange(len(rows)) - np.repeat(history.offsets[:-1], history.lengths)
    padded[rows, columns] = history.values + 1
    return torch.from_numpy(padded), torch.from_numpy(history.lengths)


def _batches(rows: Ids, size: int) -> Iterator[Ids]:
    return (rows[begin : begin + size] for begin in range(0, len(rows), size))
