"""Lines over steps as SVG, by hand: axes with units, reference lines, gaps, a legend with the last values."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from safe_rlhf_video.pages.axes import Axis, Plane, fit_axis, number, round_ticks
from safe_rlhf_video.pages.dashboard.runs import Series
from safe_rlhf_video.pages.dashboard.spec import X_TITLE, Panel
from safe_rlhf_video.pages.document import figure, line_key

COLOURS = 8
DASHES = ("", "7 4", "2 3", "9 3 2 3")
MOST_POINTS = 300


@dataclass(frozen=True)
class Line:
    """A series as it is drawn; `colour` and `dash` are numbers, counted around."""

    label: str
    series: Series
    colour: int
    dash: int


def draw(panel: Panel, lines: Sequence[Line]) -> str:
    """A panel as an HTML figure; all texts are escaped.

    Args:
        lines: at least one, each with a point.
    """
    thinned = [(line, *_thin(line.series, panel.log_scale)) for line in lines]
    steps = [step for line in lines for step in line.series.steps]
    values = [value for _, _, points in thinned for value in points if value is not None]
    low_x, high_x = min(steps), max(steps)
    if low_x == high_x:
        low_x, high_x = low_x - 1, high_x + 1
    x_ticks = [tick for tick in round_ticks(low_x, high_x, 5) if tick == int(tick)]
    x_axis = Axis(low_x, high_x, x_ticks, X_TITLE, write=lambda tick: f"{tick:,.0f}")
    y_axis = fit_axis(values + [mark.value for mark in panel.references], panel.unit, panel.log_scale)
    plane = Plane(x_axis, y_axis)
    parts = [plane.axes(), *(plane.level(mark.value, mark.label) for mark in panel.references)]
    for line, xs, ys in thinned:
        parts.append(_curve(line, xs, ys, plane))
    return figure(panel.title, plane, parts, map(_legend, lines), _count(lines, panel))


def _count(lines: Sequence[Line], panel: Panel) -> str:
    """How many figures stand behind a plot."""
    numbers = [len(line.series.steps) for line in lines]
    few, many = min(numbers), max(numbers)
    steps = [step for line in lines for step in line.series.steps]
    text = f"n = {many:,}" if few == many else f"n = {few:,} to {many:,}"
    text += f" {'row' if many == 1 else 'rows'}{' a line' if len(lines) > 1 else ''}, "
    text += f"steps {min(steps):,} to {max(steps):,}" if len(set(steps)) > 1 else f"step {steps[0]:,}"
    missing = sum(value is None for line in lines for value in line.series.values)
    if missing:
        text += f"; {missing:,} not finite: gaps"
    if panel.log_scale:
        unseen = sum(value is not None and value <= 0 for line in lines for value in line.series.values)
        text += f"; {unseen:,} zero: gaps" if unseen else ""
    if many > MOST_POINTS:
        text += f"; each point the mean of {math.ceil(many / MOST_POINTS):,}"
    return text


def _thin(series: Series, log_scale: bool) -> tuple[list[float], list[float | None]]:
    """At most MOST_POINTS points, means of neighbours; a gap stays one."""
    values = [None if value is not None and log_scale and value <= 0 else value for value in series.values]
    size = math.ceil(len(values) / MOST_POINTS)
    xs: list[float] = []
    ys: list[float | None] = []
    for start in range(0, len(values), size):
        piece = values[start : start + size]
        known = [value for value in piece if value is not None]
        steps = series.steps[start : start + size]
        xs.append(sum(steps) / len(steps))
        # Divided first: a sum of large figures may not be finite.
        ys.append(sum(value / len(known) for value in known) if len(known) == len(piece) else None)
    return xs, ys


def _curve(line: Line, xs: Sequence[float], ys: Sequence[float | None], plane: Plane) -> str:
    runs: list[list[tuple[float, float]]] = [[]]
    for x, y in zip(xs, ys, strict=True):
        if y is None:
            runs.append([])
        else:
            runs[-1].append((x, y))
    parts = []
    # Few points are told apart, and one alone makes no line.
    has_dots = len(xs) <= 40
    for run in runs:
        if len(run) > 1:
            points = " ".join(f"{plane.x_of(x):.1f},{plane.y_of(y):.1f}" for x, y in run)
            parts.append(f'<polyline points="{points}" stroke-dasharray="{DASHES[line.dash % len(DASHES)]}"/>')
        if has_dots or len(run) == 1:
            parts += [
                f'<circle cx="{plane.x_of(x):.1f}" cy="{plane.y_of(y):.1f}" r="3"><title>{escape(line.label)}: '
                f"{number(y)} at step {x:g}</title></circle>"
                for x, y in run
            ]
    return f'<g class="line c{line.colour % COLOURS}">{"".join(parts)}</g>'


def _legend(line: Line) -> str:
    known = [value for value in line.series.values if value is not None]
    last = number(known[-1]) if known else "not finite"
    key = line_key(line.colour % COLOURS, DASHES[line.dash % len(DASHES)])
    return f"{key}{escape(line.label)} <b>{last}</b>"
