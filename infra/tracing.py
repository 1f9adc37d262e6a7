"""Whether this process tells a collector of OpenTelemetry what it does; most do not.

Where it is off nothing is imported, and nothing stands between a request and its answer.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from streaming.errors import ConfigError

if TYPE_CHECKING:
    from infra.spans import Spans


@dataclass(frozen=True)
class TracingConfig:
    """Of all traces a share, `sample`, is sent to the collector at `endpoint`, by OTLP over HTTP.
    A request whose caller has sampled it is always one of them.

    Raises:
        ConfigError: the endpoint is no address.
    """

    enabled: bool = False
    endpoint: str = "http://127.0.0.1:4318"
    sample: Annotated[float, Field(ge=0, le=1)] = 0.01

    def __post_init__(self) -> None:
        if not self.endpoint.startswith(("http://", "https://")):
            raise ConfigError(
                f"tracing.endpoint = {self.endpoint!r} is no address: write http://host:4318"
            )


def open_tracing(config: TracingConfig, process: str) -> Spans | None:
    """What tells of this process; None where it is off. It is made once, and ends with the process.

    Raises:
        ConfigError: OpenTelemetry is not installed.
    """
    return _open(config, process) if config.enabled else None


@cache
def _open(config: TracingConfig, process: str) -> Spans:
    try:
        from infra.spans import Spans
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"[tracing] enabled = true needs {error.name}, which is not installed:"
            " pip install 'headrace[tracing]', or set enabled = false"
        ) from error
    return Spans(config.endpoint, config.sample, process)
