"""The HTTP interface holds what its own OpenAPI file promises, whatever is sent."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from datetime import UTC, datetime
from typing import Any

import pytest
import schemathesis
from hypothesis import strategies as st
from schemathesis.config import ChecksConfig, SchemathesisConfig
from schemathesis.engine import from_schema
from schemathesis.engine.events import FatalError, NonFatalError, ScenarioFinished
from schemathesis.engine.recorder import ScenarioRecorder

from features.catalog import Catalog
from serving.http.api import ApiConfig, ApiKey, Service, create_app
from serving.metrics import ServingMetrics
from serving.recommender import RecommendConfig, Recommender
from serving.replica import Replica
from streaming.events import EventRules
from streaming.file_log import FileLog
from streaming.metrics import Metrics

KEY = "a-key"
REFUSED = ChecksConfig().negative_data_rejection.expected_statuses
CONFIG = {
    "seed": 1,
    "headers": {"Authorization": f"Bearer {KEY}"},
    "generation": {"deterministic": True, "max-examples": 12, "database": "none"},
    "phases": {"stateful": {"enabled": False}},  # no answer leads to a next question
    # What does not fit is refused; where it is also too long, for that (414).
    "checks": {"negative_data_rejection": {"expected-statuses": [*REFUSED, "414"]}},
}
# What the file cannot say: which attributes items have, and what a text holds that is lines.
BEYOND_THE_FILE = ("items have no field", '{"lines":')
# Nor that a time is not before 1970, or to come.
TIMES = st.datetimes(datetime(1970, 1, 2), datetime(2020, 1, 1)).map(
    lambda at: at.replace(tzinfo=UTC).isoformat()
)


class NoFeatures:
    """Knows nobody."""

    is_local = True

    def read(self, view: Any, keys: Any) -> list[dict[str, Any]]:
        return [view.defaults for _ in keys]


@pytest.fixture
def described(
    log: FileLog,
    serve: Callable[..., AbstractContextManager[int]],
    catalog: Catalog,
    patient: Callable[..., RecommendConfig],
) -> Iterator[Any]:
    """The file as a service with a real log, catalog and recommender serves it."""
    schemathesis.openapi.format("date-time", TIMES)
    schemathesis.serializer("application/x-ndjson")(lambda _context, lines: str(lines).encode())
    service = Service(
        log=log,
        rules=EventRules(),
        recommender=Recommender(Replica(), catalog, NoFeatures(), patient()),
        catalog=catalog,
        metrics=ServingMetrics(Metrics()),
        status=lambda: {"lag": {}},
        not_ready=lambda: None,
    )
    keys = {"fuzz": ApiKey(hashlib.sha256(KEY.encode()).hexdigest())}
    with serve(create_app(service, ApiConfig(api_keys=keys))) as port:
        config = SchemathesisConfig.from_dict(CONFIG)
        url = f"http://127.0.0.1:{port}/openapi.json"
        yield schemathesis.openapi.from_url(url, config=config)


def test_every_answer_is_as_the_file_says(described: Any) -> None:
    """All checks of schemathesis: no 5xx; status, type, headers and body as described; what fits is
    taken, what does not is refused; nothing without a key.
    """
    broken: list[str] = []
    asked = 0
    for event in from_schema(described).execute():
        assert not isinstance(event, FatalError | NonFatalError), event
        if isinstance(event, ScenarioFinished):
            asked += len(event.recorder.interactions)
            broken += failures(event.recorder)
    assert broken == []
    assert asked > 500


def failures(recorder: ScenarioRecorder) -> Iterator[str]:
    for case, checks in recorder.checks.items():
        response = recorder.interactions[case].response
        said = "" if response is None else response.text
        for check in checks:
            if check.failure_info is None:
                continue
            fits_by_the_file = check.name == "positive_data_acceptance"
            if not (fits_by_the_file and any(reason in said for reason in BEYOND_THE_FILE)):
                what = check.failure_info
                yield f"{what.failure.message}: {what.code_sample} answered {said}"
