"""Dashboards of Grafana: what each panel shows, and the files that Grafana is provisioned with.

The files in `infra/monitoring/grafana/dashboards` are what `headrace monitoring grafana` writes;
change the tables in `infra/grafana_panels.py` and write them again. Whatever somebody changes in
Grafana itself is lost at its next start.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from string import ascii_uppercase
from typing import Any, Literal

DIRECTORY = Path(__file__).parent / "monitoring" / "grafana" / "dashboards"
SOURCE = {"type": "prometheus", "uid": "headrace"}  # as in provisioning/datasources
_WIDE = 24  # columns of Grafana's grid
_HEIGHT = 8


@dataclass(frozen=True)
class Panel:
    """One picture. `queries` gives each expression of PromQL by the legend of its lines.

    `unit` is one of Grafana's own; `none` is a plain number. A `limit` is drawn as a red line.
    """

    title: str
    description: str
    unit: str
    queries: Mapping[str, str]
    kind: Literal["timeseries", "stat", "bargauge"] = "timeseries"
    width: int = 8
    limit: float | None = None
    colours: Mapping[float, str] = field(default_factory=dict)  # from these values on
    words: Mapping[int, str] = field(default_factory=dict)  # shown in place of values


@dataclass(frozen=True)
class Dashboard:
    """A page of rows of panels; `uid` is its place in Grafana's addresses, `headrace-...`."""

    name: str
    title: str
    rows: Mapping[str, Sequence[Panel]]

    @property
    def uid(self) -> str:
        return f"headrace-{self.name}"

    @property
    def panels(self) -> list[Panel]:
        return [panel for row in self.rows.values() for panel in row]


def write(dashboards: Sequence[Dashboard], directory: Path = DIRECTORY) -> list[Path]:
    """Writes a file for each; returns their paths."""
    directory.mkdir(parents=True, exist_ok=True)
    paths = [directory / f"{one.name}.json" for one in dashboards]
    for path, one in zip(paths, dashboards, strict=True):
        path.write_text(text(one, dashboards))
    return paths


def text(dashboard: Dashboard, all_of_them: Sequence[Dashboard] = ()) -> str:
    """The file of a dashboard, with links to the others."""
    links = [
        {"title": one.title, "type": "link", "url": f"/d/{one.uid}", "keepTime": True}
        for one in all_of_them
        if one is not dashboard
    ]
    model = {
        "uid": dashboard.uid,
        "title": f"Headrace: {dashboard.title}",
        "tags": ["headrace"],
        "links": links,
        "panels": list(_placed(dashboard)),
        "time": {"from": "now-30m", "to": "now"},
        "refresh": "10s",
        "timezone": "browser",
        "schemaVersion": 39,
        "editable": False,
        "graphTooltip": 1,  # one crosshair over all panels
    }
    return json.dumps(model, indent=1) + "\n"


def _placed(dashboard: Dashboard) -> Iterator[dict[str, Any]]:
    """The panels from left to right and from top to bottom, under the titles of their rows."""
    number, x, y = 1, 0, 0
    for title, panels in dashboard.rows.items():
        yield {
            "id": number, "type": "row", "title": title, "collapsed": False, "panels": [],
            "gridPos": {"x": 0, "y": y, "w": _WIDE, "h": 1},
        }  # fmt: skip
        number, x, y = number + 1, 0, y + 1
        for panel in panels:
            if x + panel.width > _WIDE:
                x, y = 0, y + _HEIGHT
            place = {"x": x, "y": y, "w": panel.width, "h": _HEIGHT}
            yield {"id": number, "gridPos": place, **_panel(panel)}
            number, x = number + 1, x + panel.width
        y += _HEIGHT


def _panel(panel: Panel) -> dict[str, Any]:
    defaults: dict[str, Any] = {
        "unit": panel.unit,
        "thresholds": {"mode": "absolute", "steps": _steps(panel)},
        "mappings": _mappings(panel),
    }
    if panel.kind == "timeseries":
        defaults["custom"] = {
            "fillOpacity": 8,
            "showPoints": "never",
            "thresholdsStyle": {"mode": "off" if panel.limit is None else "line"},
        }
    return {
        "type": panel.kind,
        "title": panel.title,
        "description": panel.description,
        "datasource": SOURCE,
        "targets": [
            {"refId": letter, "datasource": SOURCE, "expr": expr, "legendFormat": name}
            for letter, (name, expr) in zip(ascii_uppercase, panel.queries.items(), strict=False)
        ],
        "fieldConfig": {"defaults": defaults, "overrides": []},
        "options": _OPTIONS[panel.kind],
    }  # fmt: skip


_OPTIONS: dict[str, dict[str, Any]] = {
    "timeseries": {
        "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True},
        "tooltip": {"mode": "multi", "sort": "desc"},
    },
    "stat": {"reduceOptions": {"calcs": ["lastNotNull"]}, "graphMode": "area"},
    "bargauge": {"reduceOptions": {"calcs": ["lastNotNull"]}, "orientation": "horizontal"},
}


def _steps(panel: Panel) -> list[dict[str, Any]]:
    steps: list[dict[str, Any]] = [{"color": "green", "value": None}]
    if panel.limit is not None:
        steps.append({"color": "red", "value": panel.limit})
    return steps + [{"color": name, "value": value} for value, name in panel.colours.items()]


def _mappings(panel: Panel) -> list[dict[str, Any]]:
    if not panel.words:
        return []
    return [{"type": "value", "options": {str(v): {"text": t} for v, t in panel.words.items()}}]
