"""Small line and bar plots as SVG, for the pictures that benchmarks leave in `docs/`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

_WIDTH, _HEIGHT = 640, 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 70, 150, 40, 46
_COLOURS = ("#1f6f8b", "#c8553d", "#6a994e", "#7b5ea7")


def line_plot(
    path: Path,
    title: str,
    axes: tuple[str, str],
    xs: Sequence[float],
    series: Mapping[str, Sequence[float]],
    ticks: Sequence[str] = (),
) -> None:
    """Draws each series over `xs`, the vertical axis from 0; `axes` names both, with units, and
    `ticks`, if they are given, each of the `xs`.
    """
    top = 1.15 * max(max(ys) for ys in series.values())
    low, high = min(xs), max(xs)

    def place(x: float, y: float) -> tuple[float, float]:
        across = (x - low) / ((high - low) or 1.0) * (_WIDTH - _LEFT - _RIGHT)
        return _LEFT + across, _HEIGHT - _BOTTOM - y / top * (_HEIGHT - _TOP - _BOTTOM)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}"'
        ' font-family="sans-serif" font-size="12" fill="#333">',
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="#fff"/>',
        _text(_LEFT, 22, title, 'font-size="14" font-weight="bold"'),
        _text((_LEFT + _WIDTH - _RIGHT) / 2, _HEIGHT - 8, axes[0], 'text-anchor="middle"'),
        _text(8, _TOP - 6, axes[1]),
    ]
    for step in range(5):
        value = top * step / 4
        x, y = place(low, value)
        parts.append(f'<path d="M{x:.1f} {y:.1f}H{_WIDTH - _RIGHT}" stroke="#ddd" fill="none"/>')
        parts.append(_text(x - 6, y + 4, f"{value:,.3g}", 'text-anchor="end"'))
    numbers = (low, (low + high) / 2, high)
    named = zip(xs, ticks, strict=True) if ticks else ((one, f"{one:,.3g}") for one in numbers)
    for x_value, tick in named:
        x, y = place(x_value, 0)
        parts.append(_text(x, y + 18, tick, 'text-anchor="middle"'))
    for ys, colour in zip(series.values(), _COLOURS, strict=False):
        points = " ".join(f"{x:.1f},{y:.1f}" for x, y in map(place, xs, ys))
        parts.append(
            f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2"/>'
        )
    last, lowest = xs[-1], float(_HEIGHT)
    coloured = zip(series, _COLOURS, strict=False)
    for name, colour in sorted(coloured, key=lambda one: series[one[0]][-1]):
        x, y = place(last, series[name][-1])
        lowest = min(y, lowest - 13)  # so that no name lies on another
        parts.append(_text(x + 8, lowest + 4, name, f'fill="{colour}"'))
    path.write_text("\n".join([*parts, "</svg>", ""]))


def bar_plot(path: Path, title: str, series: Mapping[str, Mapping[str, float]]) -> None:
    """Draws for every name of the first series a bar of each series that has it, the longest
    first.
    """
    names = list(dict.fromkeys(name for one in series.values() for name in one))
    of_first = next(iter(series.values()))
    names.sort(key=lambda name: -of_first.get(name, 0.0))
    thick, gap = 10, 8
    row = gap + thick * len(series)
    height, top = _TOP + 24 + row * len(names), max(max(one.values()) for one in series.values())
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}"'
        ' font-family="sans-serif" font-size="12" fill="#333">',
        f'<rect width="{_WIDTH}" height="{height}" fill="#fff"/>',
        _text(8, 22, title, 'font-size="14" font-weight="bold"'),
    ]
    left, full = 130, _WIDTH - 200
    for number, (label, values) in enumerate(series.items()):
        colour = _COLOURS[number]
        parts.append(_text(left + 150 * number, 40, label, f'fill="{colour}"'))
        for place, name in enumerate(names):
            y = _TOP + 16 + place * row + number * thick
            if number == 0:
                parts.append(_text(left - 6, y + row / 2, name, 'text-anchor="end"'))
            if name in values:
                length = full * values[name] / top
                parts.append(
                    f'<rect x="{left}" y="{y}" width="{length:.1f}" height="{thick - 1}"'
                    f' fill="{colour}"/>'
                )
                parts.append(_text(left + length + 4, y + 9, f"{values[name]:.3f}"))
    path.write_text("\n".join([*parts, "</svg>", ""]))


def _text(x: float, y: float, text: str, more: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" {more}>{escape(text)}</text>'
