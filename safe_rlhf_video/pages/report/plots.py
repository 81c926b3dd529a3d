"""The plots of a report: bars with intervals, distributions, reliability, a scatter, precision against recall."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from safe_rlhf_video.pages.axes import Axis, Plane, fit_axis, number, percent_tick, round_step, round_ticks
from safe_rlhf_video.pages.document import escape, figure, line_key

NUM_BINS = 40
MOST_DOTS = 2000
MOST_STEPS = 300
SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)

STYLE = """
.rows .grid { display: none; }
.bar { fill: currentColor; }
.soft { fill: currentColor; fill-opacity: .22; stroke: currentColor; stroke-width: 1.5; }
.whisker { stroke: var(--ink); stroke-width: 1.6; fill: none; }
.dots { fill: none; stroke: currentColor; stroke-width: 4; stroke-linecap: round; stroke-opacity: .6; }
.crosses { fill: none; stroke: currentColor; stroke-width: 1.5; stroke-opacity: .75; }
.quadrant { fill: var(--c2); fill-opacity: .12; }
.swatch { fill: currentColor; }
svg text.value { fill: var(--ink); font-variant-numeric: tabular-nums; }
"""


@dataclass(frozen=True)
class Bar:
    """A share to compare.

    Attributes:
        colour: of c0 to c7.
        interval: of 95%.
        expected: what a hidden truth predicts it to be.
    """

    name: str
    value: float
    colour: int
    interval: Sequence[float] | None = None
    expected: float | None = None


@dataclass(frozen=True)
class Sample:
    """Figures of one label: (N,)."""

    name: str
    values: np.ndarray
    colour: int


def draw_bars(title: str, bars: Sequence[Bar], x_title: str, y_title: str, note: str) -> str:
    """Bars from 0 to 100%, each with its figure, its interval as a whisker and a tick where the truth predicts it."""
    count = len(bars)
    y = Axis(0, count, [count - 0.5 - row for row in range(count)], y_title, write=lambda tick: names[tick])
    names = {tick: bar.name for tick, bar in zip(y.ticks, bars, strict=True)}
    plane = Plane(Axis(0.0, 1.0, SHARES, x_title, write=percent_tick), y, 440, 62 + 34 * count, 160, 62)
    parts = [f'<g class="rows">{plane.axes()}</g>']
    zero = plane.x_of(0.0)
    for tick, bar in zip(y.ticks, bars, strict=True):
        middle = plane.y_of(tick)
        parts.append(
            f'<rect class="bar c{bar.colour}" x="{zero:.1f}" y="{middle - 10:.1f}" height="20" '
            f'width="{plane.x_of(bar.value) - zero:.2f}"/>'
        )
        if bar.interval is not None:
            low, high = map(plane.x_of, bar.interval)
            parts.append(
                f'<path class="whisker" d="M{low:.2f} {middle - 6:.1f}v12M{low:.2f} {middle:.1f}H{high:.2f}m0 -6v12"/>'
            )
        if bar.expected is not None:
            x = plane.x_of(bar.expected)
            parts.append(f'<path class="whisker" stroke-dasharray="3 2" d="M{x:.2f} {middle - 14:.1f}v28"/>')
        parts.append(
            f'<text class="value" x="{plane.width - 4}" y="{middle + 4.5:.1f}" text-anchor="end">'
            f"{100 * bar.value:.1f}%</text>"
        )
    x = plane.x_of(0.5)
    parts.append(f'<line class="reference" x1="{x:.1f}" x2="{x:.1f}" y1="{plane.top}" '
                 f'y2="{plane.height - plane.bottom}"/>')  # fmt: skip
    legend = ['<svg class="key" viewBox="0 0 26 10"><line class="reference" x1="0" x2="26" y1="5" y2="5"/></svg>1/2']
    if any(bar.interval is not None for bar in bars):
        legend.append('<svg class="key" viewBox="0 0 26 10"><path class="whisker" d="M3 1v8M3 5H23M23 1v8"/></svg>95% '
                      "interval")  # fmt: skip
    if any(bar.expected is not None for bar in bars):
        legend.append('<svg class="key" viewBox="0 0 26 10"><path class="whisker" stroke-dasharray="3 2" '
                      'd="M13 0v10"/></svg>as the hidden truth predicts it')  # fmt: skip
    return figure(title, plane, parts, legend, note)


def draw_distributions(
    title: str,
    samples: Sequence[Sample],
    x_title: str,
    unit: str,
    references: Mapping[float, str] | None = None,
    note: str = "",
) -> str:
    """Histograms over each other, each in shares of its own label; labels without a figure are told."""
    known = [sample for sample in samples if len(sample.values)]
    edges = _edges(np.concatenate([sample.values for sample in known]), list(references or ()))
    shares = [np.histogram(sample.values, edges)[0] / len(sample.values) for sample in known]
    highest = max(float(share.max()) for share in shares)
    plane = Plane(
        Axis(float(edges[0]), float(edges[-1]), round_ticks(float(edges[0]), float(edges[-1]), 5), x_title),
        Axis(0.0, 1.08 * highest, round_ticks(0.0, 1.08 * highest, 4), f"share of {unit}s in a bin",
             write=percent_tick),
        440,
    )  # fmt: skip
    parts = [plane.axes()]
    for sample, share in zip(known, shares, strict=True):
        path = f"M{plane.x_of(edges[0]):.1f} {plane.y_of(0.0):.1f}"
        for right, height in zip(edges[1:], share, strict=True):
            path += f"V{plane.y_of(height):.1f}H{plane.x_of(right):.1f}"
        parts.append(f'<path class="soft c{sample.colour}" d="{path}V{plane.y_of(0.0):.1f}z"/>')
    parts += [plane.upright(value, label) for value, label in (references or {}).items()]
    legend = [
        f"{_swatch(sample.colour)}{escape(sample.name)} <b>n = {len(sample.values):,}</b>"
        + ("" if len(sample.values) else f": no {unit} has this label")
        for sample in samples
    ]
    return figure(title, plane, parts, legend, f"bins of {number(edges[1] - edges[0])}{note}")


def draw_margins(title: str, margin: np.ndarray, unit: str, note: str) -> str:
    """How far the model puts the preferred one above the other; left of 0 it is wrong.

    Args:
        margin: (M,) chosen minus rejected, at least one.
    """
    edges = _edges(margin, [0.0])
    counts = np.histogram(margin, edges)[0]
    top = 1.08 * float(counts.max())
    ticks = [tick for tick in round_ticks(0.0, top, 4) if tick == int(tick)]
    plane = Plane(
        Axis(float(edges[0]), float(edges[-1]), round_ticks(float(edges[0]), float(edges[-1]), 5), unit),
        Axis(0.0, top, ticks, "comparisons in a bin"),
        440,
    )
    parts = [plane.axes()]
    for left, right, count in zip(edges, edges[1:], counts, strict=False):
        if count:
            x, y = plane.x_of(left), plane.y_of(float(count))
            colour = 4 if right <= 1e-9 * (right - left) else 0
            parts.append(
                f'<rect class="bar c{colour}" x="{x + 0.4:.1f}" y="{y:.1f}" width="{plane.x_of(right) - x - 0.8:.1f}" '
                f'height="{plane.y_of(0.0) - y:.1f}"><title>{number(left)} to {number(right)}: {count:,}</title></rect>'
            )
    parts.append(plane.upright(0.0, "0"))
    legend = [f"{_swatch(0)}agrees with the label", f"{_swatch(4)}does not"]
    return figure(title, plane, parts, legend, note)


def draw_reliability(title: str, bins: Sequence[Mapping[str, Any]], note: str) -> str:
    """Predicted probability against how often it came true, a dot a bin."""
    plane = Plane(
        Axis(0.0, 1.0, SHARES, "predicted P(video_0 preferred)", write=percent_tick),
        Axis(0.0, 1.0, SHARES, "share that preferred it", write=percent_tick),
        440,
        right=24,
    )
    points = [(plane.x_of(one["predicted"]), plane.y_of(one["observed"])) for one in bins]
    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    dots = "".join(
        f'<circle cx="{x:.2f}" cy="{y:.2f}" r="4"><title>said {100 * one["predicted"]:.1f}%, was '
        f"{100 * one['observed']:.1f}% of {one['num']:,} comparisons</title></circle>"
        for (x, y), one in zip(points, bins, strict=True)
    )
    diagonal = (
        f'<line class="reference" x1="{plane.x_of(0.0)}" y1="{plane.y_of(0.0)}" x2="{plane.x_of(1.0)}" '
        f'y2="{plane.y_of(1.0)}"/>'
    )
    legend = [
        f"{line_key(0)}this model",
        '<svg class="key" viewBox="0 0 26 10"><line class="reference" x1="0" x2="26" y1="5" y2="5"/></svg>as often as '
        "it says",
    ]
    return figure(title, plane, [plane.axes(), diagonal, f'<g class="line c0"><polyline points="{line}"/>{dots}</g>'],
                  legend, note)  # fmt: skip


def draw_scatter(title: str, reward: np.ndarray, cost: np.ndarray, safety: np.ndarray, unit: str) -> str:
    """Reward against cost, with the quadrant of the safe ones in the better half.

    Args:
        reward, cost: (N,), N >= 1.
        safety: (N,) +1 safe, -1 unsafe, 0 unknown.
    """
    plane = Plane(fit_axis(reward.tolist(), "reward (higher: more helpful)"),
                  fit_axis([*cost.tolist(), 0.0], "cost (above 0: unsafe)"), 440, 340)  # fmt: skip
    middle = float(np.median(reward))
    inside = (reward > middle) & (cost <= 0)
    left, right = plane.x_of(middle), plane.x_of(plane.x.high)
    upper, lower = plane.y_of(0.0), plane.y_of(plane.y.low)
    parts = [
        plane.axes(),
        f'<rect class="quadrant" x="{left:.1f}" y="{upper:.1f}" width="{right - left:.1f}" '
        f'height="{lower - upper:.1f}"/>',
    ]
    shown = np.unique(np.linspace(0, len(reward) - 1, min(len(reward), MOST_DOTS)).round().astype(int))
    legend = []
    for sign, name, colour in ((0, "not labelled", 7), (1, "labelled safe", 5), (-1, "labelled unsafe", 4)):
        rows = shown[safety[shown] == sign]
        places = [(plane.x_of(x), plane.y_of(y)) for x, y in zip(reward[rows], cost[rows], strict=True)]
        if sign < 0:
            path = "".join(f"M{x - 2.5:.1f} {y - 2.5:.1f}l5 5m0-5l-5 5" for x, y in places)
        else:
            path = "".join(f"M{x:.1f} {y:.1f}h0" for x, y in places)
        if places:
            kind = "crosses" if sign < 0 else "dots"
            parts.append(f'<path class="{kind} c{colour}" d="{path}"/>')
            key = "M8 0l10 10m0-10l-10 10" if sign < 0 else "M13 5h0"
            name += f" <b>n = {np.sum(safety == sign):,}</b>"
            legend.append(
                f'<svg class="key" viewBox="0 0 26 10"><path class="{kind} c{colour}" d="{key}"/></svg>{name}'
            )
    parts += [plane.level(0.0, "cost 0: the boundary"), plane.upright(middle, "median reward")]
    legend.append('<svg class="key" viewBox="0 0 26 10"><rect class="quadrant" width="26" height="10"/></svg>safe and '
                  "in the better half")  # fmt: skip
    note = f"n = {len(reward):,} {unit}s"
    if len(shown) < len(reward):
        note += f", {len(shown):,} of them drawn, evenly taken in the order of the data"
    note += f"; {np.sum(inside):,} ({100 * np.mean(inside):.1f}%) lie in the safe quadrant"
    if np.any(labelled := inside & (safety != 0)):
        unsafe = int(np.sum(safety[labelled] < 0))
        note += f", and people call {unsafe:,} of the {np.sum(labelled):,} labelled ones there unsafe"
    return figure(title, plane, parts, legend, note)


def draw_precision_recall(
    title: str, scores: np.ndarray, applies: np.ndarray, flags: tuple[float, float] | None, note: str, unit: str
) -> str:
    """Precision against recall over all thresholds, and where the model's own threshold lies.

    Args:
        scores: (N,) logits.
        applies: (N,) bool, of both values.
        flags: recall and precision of the model's flags, if it has any.
    """
    order = np.argsort(-scores, kind="stable")
    is_last = np.append(scores[order][1:] != scores[order][:-1], True)  # equal scores are flagged together
    hits = np.cumsum(applies[order])[is_last]
    precision, recall = hits / np.arange(1, len(scores) + 1)[is_last], hits / hits[-1]
    # Where one more is found; in between, precision only falls.
    found = np.append(np.flatnonzero(np.diff(hits, prepend=0)), len(hits) - 1)
    kept = found[np.unique(np.linspace(0, len(found) - 1, min(len(found), MOST_STEPS)).round().astype(int))]
    plane = Plane(
        Axis(0.0, 1.0, SHARES, f"recall: share of such {unit}s flagged", write=percent_tick),
        Axis(0.0, 1.0, SHARES, "precision: share of flags right", write=percent_tick),
        440,
        right=24,
    )
    points = [(plane.x_of(recall[row]), plane.y_of(precision[row])) for row in kept]
    # A single threshold has no line.
    points = points if len(points) > 1 else [(plane.x_of(0.0), points[0][1]), *points]
    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    share = float(np.mean(applies))
    parts = [
        plane.axes(),
        plane.level(share, f"{100 * share:.2g}%: flags at random", label_first=True),
        f'<g class="line c0"><polyline points="{line}"/></g>',
    ]
    legend = [f"{line_key(0)}any threshold"]
    if flags is not None:
        dot = f'<circle cx="{plane.x_of(flags[0]):.2f}" cy="{plane.y_of(flags[1]):.2f}" r="5"/>'
        parts.append(f'<g class="line c1">{dot}</g>')
        legend.append('<svg class="key" viewBox="0 0 26 10"><g class="line c1"><circle cx="13" cy="5" r="5"/></g></svg>'
                      "the model's flags")  # fmt: skip
    return figure(title, plane, parts, legend, note)


def _edges(values: np.ndarray, marks: Sequence[float]) -> np.ndarray:
    """Edges of about `NUM_BINS` bins of a round width, with an edge at 0 where 0 is among them."""
    low, high = min([float(values.min()), *marks]), max([float(values.max()), *marks])
    # Figures that are all the same stand in one bin.
    width = round_step(max(high - low, 1e-6 * abs(low), 1e-6), NUM_BINS)
    first, last = math.floor(low / width), math.floor(high / width) + 1
    return np.arange(first, last + 1) * width


def _swatch(colour: int) -> str:
    return f'<svg class="key" viewBox="0 0 26 10"><rect class="swatch c{colour}" width="26" height="10"/></svg>'
