"""Lines over steps as SVG, by hand: axes with units, reference lines, gaps, a legend with the last values."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

from safe_rlhf_video.dashboards.runs import Series
from safe_rlhf_video.dashboards.spec import X_TITLE, Panel

COLOURS = 8
DASHES = ("", "7 4", "2 3", "9 3 2 3")
MOST_POINTS = 300
_WIDTH, _HEIGHT = 480, 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 66, 12, 12, 50


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
    x_of = _scale(low_x, high_x, _LEFT, _WIDTH - _RIGHT)
    low, high, ticks = _y_range(values + [mark.value for mark in panel.references], panel.log_scale)
    of_value: Callable[[float], float] = math.log10 if panel.log_scale else float
    position = _scale(of_value(low), of_value(high), _HEIGHT - _BOTTOM, _TOP)

    def y_of(value: float) -> float:
        return position(of_value(value))

    parts = [_axes(x_of, y_of, [tick for tick in _ticks(low_x, high_x, 5) if tick == int(tick)], ticks, panel.unit)]
    for mark in panel.references:
        y = y_of(mark.value)
        # Above the line, or below it where that would leave the plot.
        text_y = y - 5 if y > _TOP + 20 else y + 15
        parts.append(
            f'<line class="reference" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
            f'<text class="mark" x="{_WIDTH - _RIGHT - 3}" y="{text_y:.1f}" text-anchor="end">{escape(mark.label)}'
            "</text>"
        )
    for line, xs, ys in thinned:
        parts.append(_curve(line, xs, ys, x_of, y_of))
    shown = "".join(_legend(line) for line in lines)
    return (
        f"<figure><h3>{escape(panel.title)}</h3>"
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(panel.title)}">{"".join(parts)}</svg>'
        f'<figcaption><ul>{shown}</ul><p class="dim">{escape(_count(lines, panel))}</p></figcaption></figure>'
    )


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


def _curve(line: Line, xs: Sequence[float], ys: Sequence[float | None],
           x_of: Callable[[float], float], y_of: Callable[[float], float]) -> str:  # fmt: skip
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
            points = " ".join(f"{x_of(x):.1f},{y_of(y):.1f}" for x, y in run)
            parts.append(f'<polyline points="{points}" stroke-dasharray="{DASHES[line.dash % len(DASHES)]}"/>')
        if has_dots or len(run) == 1:
            parts += [
                f'<circle cx="{x_of(x):.1f}" cy="{y_of(y):.1f}" r="3"><title>{escape(line.label)}: {number(y)} at step '
                f"{x:g}</title></circle>"
                for x, y in run
            ]
    return f'<g class="line c{line.colour % COLOURS}">{"".join(parts)}</g>'


def _legend(line: Line) -> str:
    known = [value for value in line.series.values if value is not None]
    last = number(known[-1]) if known else "not finite"
    dash = DASHES[line.dash % len(DASHES)]
    return (
        f'<li><svg class="key" viewBox="0 0 26 10"><g class="line c{line.colour % COLOURS}">'
        f'<polyline points="0,5 26,5" stroke-dasharray="{dash}"/></g></svg>{escape(line.label)} <b>{last}</b></li>'
    )


def _axes(x_of: Callable[[float], float], y_of: Callable[[float], float],
          x_ticks: Sequence[float], y_ticks: Sequence[float], unit: str) -> str:  # fmt: skip
    bottom, right = _HEIGHT - _BOTTOM, _WIDTH - _RIGHT
    parts = [f'<path class="axis" d="M{_LEFT} {_TOP}V{bottom}H{right}"/>']
    for tick in y_ticks:
        y = y_of(tick)
        parts.append(
            f'<line class="grid" x1="{_LEFT}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}"/>'
            f'<text x="{_LEFT - 6}" y="{y + 4.5:.1f}" text-anchor="end">{number(tick)}</text>'
        )
    for tick in x_ticks:
        parts.append(f'<text x="{x_of(tick):.1f}" y="{bottom + 17}" text-anchor="middle">{tick:,.0f}</text>')
    middle = (_TOP + bottom) / 2
    parts.append(
        f'<text x="{(_LEFT + right) / 2}" y="{_HEIGHT - 9}" text-anchor="middle">{X_TITLE}</text>'
        f'<text transform="translate(13 {middle}) rotate(-90)" text-anchor="middle">{escape(unit)}</text>'
    )
    return "".join(parts)


def _scale(low: float, high: float, start: float, end: float) -> Callable[[float], float]:
    return lambda value: start + (value - low) / (high - low) * (end - start)


def _y_range(values: Sequence[float], log_scale: bool) -> tuple[float, float, list[float]]:
    """Bounds with a little room, and ticks between them."""
    low, high = (min(values), max(values)) if values else (1.0, 10.0)
    if log_scale:
        low, high = max(low / 1.3, 1e-300), min(high * 1.3, 1e300)
        powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        every = max(1, len(powers) // 6)
        steps = (1, 2, 5) if len(powers) <= 3 else (1,)
        ticks = [step * 10.0**power for power in powers[::every] for step in steps]
        return low, high, [tick for tick in ticks if low <= tick <= high]
    # Figures that differ by rounding alone are drawn as a level line.
    room = max((high - low) * 0.06, abs(high) * 1e-6, 1e-12)
    low, high = max(low - room, -1e300), min(high + room, 1e300)
    return low, high, _ticks(low, high, 5)


def _ticks(low: float, high: float, about: int) -> list[float]:
    """Round numbers between two bounds."""
    raw = (high - low) / about
    power = 10.0 ** math.floor(math.log10(raw))
    size = next(step * power for step in (1, 2, 5, 10) if step * power >= raw * 0.999)
    first = math.ceil(low / size - 1e-9)
    ticks = [round(number * size, 12) if size > 1e-9 else number * size for number in range(first, first + 12)]
    return [tick for tick in ticks if tick <= high + size * 1e-9]


def number(value: float) -> str:
    """A figure with four digits, the thousands parted."""
    return f"{value:,.0f}" if 10_000 <= abs(value) < 1e9 else f"{value:.4g}"
