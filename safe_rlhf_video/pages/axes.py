"""Scales, ticks and axes of plots as SVG. Places are in units of the view box, which the page scales."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape


def number(value: float) -> str:
    """A figure with four digits, the thousands parted."""
    return f"{value:,.0f}" if 10_000 <= abs(value) < 1e9 else f"{value:.4g}"


def percent_tick(value: float) -> str:
    """A share in per cent, with a digit more where it is none in whole ones."""
    return f"{100 * value:.6g}%"


@dataclass(frozen=True)
class Axis:
    """One direction of a plot.

    Attributes:
        low, high: what lies at its ends; `low` below `high`.
        title: what it shows and in which unit.
        write: makes the text of a tick.
    """

    low: float
    high: float
    ticks: Sequence[float]
    title: str
    log_scale: bool = False
    write: Callable[[float], str] = number


@dataclass(frozen=True)
class Plane:
    """Two axes in a view box.

    Attributes:
        left, right, top, bottom: room around the plane, for ticks and titles.
    """

    x: Axis
    y: Axis
    width: float = 480
    height: float = 300
    left: float = 78
    right: float = 12
    top: float = 12
    bottom: float = 50

    def x_of(self, value: float) -> float:
        """Where a figure lies from the left."""
        return self.left + _share(self.x, value) * (self.width - self.left - self.right)

    def y_of(self, value: float) -> float:
        """Where a figure lies from the top."""
        return self.height - self.bottom - _share(self.y, value) * (self.height - self.top - self.bottom)

    def axes(self) -> str:
        """Both axes with ticks, titles and lines across at those of y."""
        bottom, right = self.height - self.bottom, self.width - self.right
        parts = [f'<path class="axis" d="M{self.left} {self.top}V{bottom}H{right}"/>']
        for tick in self.y.ticks:
            y = self.y_of(tick)
            parts.append(
                f'<line class="grid" x1="{self.left}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}"/>'
                f'<text x="{self.left - 6}" y="{y + 4.5:.1f}" text-anchor="end">{escape(self.y.write(tick))}</text>'
            )
        for tick in self.x.ticks:
            text = escape(self.x.write(tick))
            parts.append(f'<text x="{self.x_of(tick):.1f}" y="{bottom + 19}" text-anchor="middle">{text}</text>')
        middle = (self.top + bottom) / 2
        parts.append(
            f'<text class="title" x="{(self.left + right) / 2}" y="{self.height - 8}" text-anchor="middle">'
            f"{escape(self.x.title)}</text>"
            f'<text class="title" transform="translate(13 {middle}) rotate(-90)" text-anchor="middle">'
            f"{escape(self.y.title)}</text>"
        )
        return "".join(parts)

    def level(self, value: float, label: str, label_first: bool = False) -> str:
        """A line across at a figure of y that means something, its label above it, or below where that has no room.

        Args:
            label_first: the label stands at the line's start instead of its end.
        """
        y = self.y_of(value)
        text_y = y - 5 if y > self.top + 20 else y + 15
        x, anchor = (self.left + 4, "start") if label_first else (self.width - self.right - 3, "end")
        return (
            f'<line class="reference" x1="{self.left}" x2="{self.width - self.right}" y1="{y:.1f}" y2="{y:.1f}"/>'
            f'<text class="mark" x="{x}" y="{text_y:.1f}" text-anchor="{anchor}">{escape(label)}</text>'
        )

    def upright(self, value: float, label: str) -> str:
        """A line from bottom to top at a figure of x, its label beside it where there is more room."""
        x = self.x_of(value)
        is_left = x < (self.left + self.width - self.right) / 2
        return (
            f'<line class="reference" x1="{x:.1f}" x2="{x:.1f}" y1="{self.top}" y2="{self.height - self.bottom}"/>'
            f'<text class="mark" x="{x + (4 if is_left else -4):.1f}" y="{self.top + 11}" '
            f'text-anchor="{"start" if is_left else "end"}">{escape(label)}</text>'
        )


def fit_axis(values: Sequence[float], title: str, log_scale: bool = False) -> Axis:
    """An axis around some figures with a little room at its ends.

    Args:
        values: finite, on a logarithmic scale above 0; without any the axis is one of nothing in particular.
    """
    low, high = (min(values), max(values)) if values else (1.0, 10.0)
    if log_scale:
        low, high = max(low / 1.3, 1e-300), min(high * 1.3, 1e300)
        powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        every = max(1, len(powers) // 6)
        steps = (1, 2, 5) if len(powers) <= 3 else (1,)
        ticks = [step * 10.0**power for power in powers[::every] for step in steps]
        return Axis(low, high, [tick for tick in ticks if low <= tick <= high], title, log_scale)
    # Figures that differ by rounding alone are drawn as a level line.
    room = max((high - low) * 0.06, abs(high) * 1e-6, 1e-12)
    low, high = max(low - room, -1e300), min(high + room, 1e300)
    return Axis(low, high, round_ticks(low, high, 5), title)


def round_step(span: float, about: int) -> float:
    """1, 2 or 5 times a power of ten that divides a span into at most `about` steps, and few less."""
    raw = span / about
    power = 10.0 ** math.floor(math.log10(raw))
    return next(step * power for step in (1, 2, 5, 10) if step * power >= raw * 0.999)


def round_ticks(low: float, high: float, about: int) -> list[float]:
    """Round numbers between two bounds."""
    size = round_step(high - low, about)
    first = math.ceil(low / size - 1e-9)
    ticks = [round(place * size, 12) if size > 1e-9 else place * size for place in range(first, first + 12)]
    return [tick for tick in ticks if tick <= high + size * 1e-9]


def _share(axis: Axis, value: float) -> float:
    """From 0 at the low end of an axis to 1 at its high end."""
    if axis.log_scale:
        low, high = math.log10(axis.low), math.log10(axis.high)
        return (math.log10(value) - low) / (high - low)
    return (value - axis.low) / (axis.high - axis.low)
