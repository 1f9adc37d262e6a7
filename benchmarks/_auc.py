"""The area under the ROC curve where not labels are known but how likely they are."""

from __future__ import annotations

from typing import Any

import numpy as np


def auc(scores: Any, likely: Any) -> float:
    """The AUC (n,) that scores (n,) have on average, if each label is 1 with its own probability;
    of labels, the usual one. Ties count half; NaN if only one kind of label can be.

    >>> auc([0.1, 0.2, 0.2, 0.9], [0, 0, 1, 1])
    0.875
    >>> auc([0.1, 0.9], [0.5, 0.5])
    0.5
    """
    _, place = np.unique(np.asarray(scores, np.float64), return_inverse=True)
    likely = np.asarray(likely, np.float64)
    positive, negative = np.bincount(place, likely), np.bincount(place, 1.0 - likely)
    total = positive.sum() * negative.sum()
    below = np.cumsum(negative) - negative / 2.0
    return float((positive * below).sum() / total) if total else float("nan")
