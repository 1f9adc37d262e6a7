"""Answers as JSON, in the shapes of `serving.http.schemas`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import msgspec
import numpy as np

from features.catalog import CatalogItem
from serving.answers import Answer, KnownUser, Recommendation
from serving.times import time_text


def answer_json(answer: Answer, *, explain: bool, logged: bool) -> bytes:
    """As `RecommendAnswer`."""
    return encoded(_answer(answer, explain, logged))


def ranked_json(answer: Answer, *, explain: bool, logged: bool) -> bytes:
    """As `RankAnswer`."""
    return encoded({**_answer(answer, explain, logged), "unknown": list(answer.unknown)})


def user_json(known: KnownUser) -> bytes:
    """As `UserAnswer`."""
    return encoded(
        {
            "user_id": known.user_id,
            "attributes": known.attributes,
            "interests": list(known.interests),
            "actions": [
                {
                    "item": item_fields(action.item),
                    "kind": action.kind,
                    "at": time_text(action.at_us),
                    "reward": action.reward,
                    "value": action.value,
                }
                for action in known.actions
            ],
            "searched": known.searched,
            "features_at": time_text(known.features_at_us),
            "arms": known.arms,
            "degraded": list(known.degraded),
        }
    )


def item_fields(item: CatalogItem) -> dict[str, Any]:
    """As `Item`."""
    return {"item_id": item.item_id, "title": item.title, "attributes": item.attributes}


def encoded(shown: object) -> bytes:
    """JSON of what was put together here; a number that is none is null."""
    return _ENCODER.encode(shown)


def _answer(answer: Answer, explain: bool, logged: bool) -> dict[str, Any]:
    version = answer.version
    shown: dict[str, Any] = {
        "request_id": answer.request_id,
        "user_id": answer.user_id,
        "scenario": answer.scenario,
        "items": [_scored(one, explain) for one in answer.items],
        "version": None if version is None else version.name,
        "watermark": None if version is None else time_text(version.watermark_us),
        "known_actions": answer.known_actions,
        "features_at": time_text(answer.features_at_us),
        "arms": answer.arms,
        "degraded": list(answer.degraded),
        "logged": logged,
    }
    if explain:
        shown["took_ms"] = answer.took_ms
        shown["ranker"] = None if answer.ranker is None else answer.ranker.name
        shown["fusion"] = None if answer.fusion is None else asdict(answer.fusion)
    return shown


def _scored(one: Recommendation, explain: bool) -> dict[str, Any]:
    shown: dict[str, Any] = {
        **item_fields(one.item),
        "score": one.score,
        "source": one.source,
    }
    if explain:
        why = one.why
        shown["statistics"] = one.statistics
        shown["why"] = (
            None if why is None else {"shares": why.shares, "tasks": why.tasks, "moved": why.moved}
        )
    return shown


def _plain(value: object) -> object:
    """What the encoder does not know: numbers and arrays of NumPy, read-only mappings."""
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"{type(value).__name__} cannot be written as JSON")


_ENCODER = msgspec.json.Encoder(enc_hook=_plain)
