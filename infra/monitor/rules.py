"""What Prometheus reads: where to find all processes, and the rules, from the one table of both."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from infra.monitor.alerts import ALERTS, RECORDINGS, Alert, Recording
from infra.monitor.expressions import duration, scaled

RULES_FILE = "headrace.rules.yml"
_WRITTEN = "# Written by `headrace monitoring {}`: change infra/monitor/, then write it anew."


def rules_yaml(
    scale: float = 1.0,
    alerts: Sequence[Alert] = ALERTS,
    recordings: Sequence[Recording] = RECORDINGS,
) -> str:
    """Recording and alerting rules for a scrape every 5 s; times are `scale` times as long."""
    return "\n".join(_rules(scale, alerts, recordings)) + "\n"


def _rules(scale: float, alerts: Sequence[Alert], recordings: Sequence[Recording]) -> Iterator[str]:
    yield _WRITTEN.format("rules")
    yield "groups:"
    yield "  - name: headrace-recordings"
    yield "    rules:"
    for recording in recordings:
        yield f"      - record: {recording.name}"
        yield f"        expr: {_text(recording.expression.promql(scale))}"
    yield "  - name: headrace-alerts"
    yield "    rules:"
    for alert in alerts:
        yield f"      - alert: {alert.name}"
        yield f"        expr: {_text(alert.condition.promql(scale))}"
        if alert.for_s:
            yield f"        for: {duration(scaled(alert.for_s, scale))}"
        yield f"        keep_firing_for: {duration(scaled(alert.keep_s, scale))}"
        yield "        labels:"
        yield f"          severity: {alert.severity}"
        yield "        annotations:"
        yield f"          summary: {_text(_template(alert.sentence))}"
        yield f"          runbook: {alert.runbook}"


def prometheus_yaml(addresses: Sequence[str], interval_s: float = 5.0) -> str:
    """The configuration: `addresses` are those of `headrace run` (and of more, if there are some),
    which know all others.
    """
    every = duration(interval_s)
    lines = [
        _WRITTEN.format("prometheus-config"),
        "global:",
        f"  scrape_interval: {every}",
        f"  evaluation_interval: {every}",
        "rule_files:",
        f"  - {RULES_FILE}",
        "scrape_configs:",
        "  - job_name: headrace",
        # What the run tells of another process counts as that one's.
        "    honor_labels: true",
        "    http_sd_configs:",
    ]
    for address in addresses:
        lines.append(f"      - url: {_text(f'http://{address}/v1/targets')}")
        lines.append(f"        refresh_interval: {every}")
    return "\n".join(lines) + "\n"


def _template(sentence: str) -> str:
    """A sentence as Prometheus fills it in."""

    def filled(match: re.Match[str]) -> str:
        name = match[1]
        return "{{ $value | humanize }}" if name == "value" else f"{{{{ $labels.{name} }}}}"

    return re.sub(r"\{(\w+)\}", filled, sentence)


def _text(text: str) -> str:
    """A string of YAML, in quotes."""
    return "'" + text.replace("'", "''") + "'"
