"""Draws every kind of plot that the pages show: lines, rows of bars, distributions, dots and curves.

Texts may come from data files: they are shortened to the room they have, and what cannot be printed is replaced.
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, MaxNLocator, NullLocator

from safe_rlhf_video.pages.figures import (
    COLOUR,
    REFERENCE,
    REFERENCE_DASH,
    Drawing,
    Key,
    Plot,
    new_drawing,
    page_style,
    printable,
)
from safe_rlhf_video.wording import number

NUM_BINS = 40
MAX_DOTS = 2000
MAX_STEPS = 300
MAX_DOTTED = 40
MAX_ROWS = 24
ROW_HEIGHT = 40.0
ABOVE_AXES = 2.6  # the order in which matplotlib draws: lines 2, axes 2.5, texts 3
ROW_TEXT = 47  # characters beside each other in a row, in a wide font
MARKED = 8  # points of a line that are marked where there are too many to mark them all
_LARGEST, _SMALLEST = 1e300, 1e-300  # beyond these, spans and ratios overflow

SECOND_DASH = (5, 3)  # outline of the second distribution
HALF = Key("1/2", "line", dash=REFERENCE_DASH)
INTERVAL = Key("95% interval", "whisker")
EXPECTED = Key("as the hidden truth predicts it", "tick")


@dataclass(frozen=True)
class Line:
    """A series over steps, at least one; None is a gap."""

    key: Key
    steps: Sequence[int]
    values: Sequence[float | None]


@dataclass(frozen=True)
class Share:
    """A share to compare with others.

    Attributes:
        value: None where there is no figure.
        text: what is written beside its name.
        interval: of 95%.
        expected: what a hidden truth predicts it to be.
    """

    name: str
    value: float | None
    text: str
    interval: Sequence[float] | None = None
    expected: float | None = None
    colour: str = "blue"


@dataclass(frozen=True)
class Sample:
    """Figures of one label: (N,)."""

    name: str
    values: np.ndarray
    colour: str


@page_style()
def draw_lines(
    title: str,
    lines: Sequence[Line],
    titles: tuple[str, str],
    note: str,
    marks: Mapping[float, str] | None = None,
    log_scale: bool = False,
) -> Plot:
    """Lines over steps; of many steps each point is the mean of several, and of few each is a dot.

    Args:
        titles: of the axes.
        marks: values that mean something -> what they mean.
        log_scale: figures that are not above 0 are gaps.
    """
    drawing = new_drawing(*titles)
    axes = drawing.axes
    low, high = min(min(line.steps) for line in lines), max(max(line.steps) for line in lines)
    axes.set_xlim((low, high) if low < high else (low - 1, high + 1))
    axes.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10], integer=True))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda tick, _: f"{tick:,.0f}"))
    thinned = [_thin(line, log_scale) for line in lines]
    _fit_y(axes, np.concatenate([*(values for _, values in thinned), list(marks or ())]), log_scale)
    for value, label in (marks or {}).items():
        drawing.level(value, label)
    for line, (steps, values) in zip(lines, thinned, strict=True):
        colour, dash = COLOUR[line.key.colour], line.key.dash
        (drawn,) = axes.plot(steps, values, color=colour, linestyle=(0, dash) if dash else "-")
        drawing.tag(drawn, "line")
        known = np.isfinite(values)
        # A figure between two gaps makes no line.
        alone = known & ~np.append(False, known[:-1]) & ~np.append(known[1:], False)
        dotted = np.flatnonzero(
            known if len(values) <= MAX_DOTTED else alone | (known & _some(values, lines.index(line)))
        )
        if len(dotted):
            steps, values = steps[dotted], values[dotted]
            (dots,) = axes.plot(steps, values, line.key.marker or "o", color=colour, markersize=6, markeredgewidth=0,
                                zorder=ABOVE_AXES)  # fmt: skip
            drawing.tag(dots, "dots", [f"{line.key.label}: {number(value)} at step {step:g}"
                                       for step, value in zip(steps, values, strict=True)])  # fmt: skip
    return drawing.finish(title, note, [line.key for line in lines])


def _some(values: np.ndarray, place: int) -> np.ndarray:
    """Which points to mark, of many: evenly spread, those of each line at other places."""
    every = len(values) / MARKED
    chosen = np.zeros(len(values), bool)
    chosen[np.arange(every * (0.5 + 0.15 * (place % 4)), len(values), every).astype(int)] = True
    return chosen


def _thin(line: Line, log_scale: bool) -> tuple[np.ndarray, np.ndarray]:
    """Steps and values of at most MAX_STEPS points, each the mean of its neighbours; a piece with a gap is NaN."""
    values = np.array([np.nan if value is None else value for value in line.values], float)
    values = np.clip(values, -_LARGEST, _LARGEST)
    if log_scale:
        values = np.where(values > 0, np.maximum(values, _SMALLEST), np.nan)
    size = math.ceil(len(values) / MAX_STEPS)
    starts = np.arange(0, len(values), size)
    lengths = np.diff(np.append(starts, len(values)))
    steps = np.asarray(line.steps, float)
    return np.add.reduceat(steps, starts) / lengths, np.add.reduceat(values, starts) / lengths


def _fit_y(axes: Any, values: np.ndarray, log_scale: bool) -> None:
    """Limits around some values with a little room, and round ticks; without any finite value an axis from 1 to 10."""
    values = values[np.isfinite(values)]
    low, high = (float(values.min()), float(values.max())) if len(values) else (1.0, 10.0)
    if log_scale:
        axes.set_yscale("log")
        low, high = max(low / 1.3, _SMALLEST), min(high * 1.3, _LARGEST)
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if high / low < 1000 else (1.0,), numticks=7))
        axes.yaxis.set_minor_locator(NullLocator())
    else:
        # So much that ticks of four digits differ, and figures that differ by rounding alone are a level line.
        room = max((high - low) * 0.06, abs(high) * 2e-3, 1e-12)
        low, high = low - room, high + room
        axes.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda tick, _: number(tick)))
    axes.set_ylim(low, high)


# Rows of bars


def _new_rows(names: Sequence[str], texts: Sequence[str], x_title: str, y_title: str) -> Drawing:
    """Rows from top to bottom, each with a name at the left and a text at the right, and room for a bar below them."""
    drawing = new_drawing(x_title, y_title, 82 + ROW_HEIGHT * len(names), left=16, right=24, top=32)
    axes = drawing.axes
    axes.set_ylim(len(names), 0)
    axes.yaxis.set_major_locator(NullLocator())
    axes.spines["left"].set_visible(False)
    axes.yaxis.label.set(rotation=0, ha="left")
    axes.yaxis.set_label_coords(0, 1 + 12 / (ROW_HEIGHT * len(names)))
    for row, (name, text) in enumerate(zip(names, texts, strict=True)):
        place = {"transform": axes.get_yaxis_transform(), "va": "center"}
        label = axes.text(0, row + 0.3, _shorten(name, ROW_TEXT - len(text)), **place)
        drawing.tag(label, "name", [name])
        drawing.tag(axes.text(1, row + 0.3, text, ha="right", **place), "value")
    return drawing


def _draw_bars(drawing: Drawing, widths: Sequence[float], titles: Sequence[str], colours: Sequence[str],
               starts: Sequence[float] | float = 0.0) -> None:  # fmt: skip
    rows = np.arange(len(widths)) + 0.74
    bars = drawing.axes.barh(rows, widths, 0.32, starts, color=[COLOUR[colour] for colour in colours])
    for bar, title in zip(bars, titles, strict=True):
        drawing.tag(bar, "bar", [title])


@page_style()
def draw_counts(
    title: str, counts: Mapping[str, int], titles: tuple[str, str], note: str, texts: Mapping[str, str] | None = None
) -> Plot:
    """A bar for each name, the largest as wide as there is room; past `MAX_ROWS` the rest is one bar.

    Args:
        titles: of the axes: what is counted, and what the names are.
        texts: what is written beside a name, in place of its count.
    """
    shown = dict(list(counts.items())[:MAX_ROWS])
    if rest := len(counts) - len(shown):
        shown[f"{rest} more"] = sum(list(counts.values())[MAX_ROWS:])
    written = [(texts or {}).get(name, f"{value:,}") for name, value in shown.items()]
    drawing = _new_rows(list(shown), written, *titles)
    drawing.axes.set_xlim(0, max([*shown.values(), 1]))
    drawing.axes.xaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10], integer=True))
    drawing.axes.xaxis.set_major_formatter(FuncFormatter(lambda tick, _: f"{tick:,.0f}"))
    hovers = [f"{name}: {text}" for name, text in zip(shown, written, strict=True)]
    _draw_bars(drawing, list(shown.values()), hovers, ["blue"] * len(shown))
    return drawing.finish(title, note)


@page_style()
def draw_stacked(
    title: str, rows: Mapping[str, Sequence[int]], names: Sequence[str], titles: tuple[str, str], note: str
) -> Plot:
    """A bar for each row, divided into shares of its whole; the last of up to four colours is pale."""
    colours = [*("blue", "orange", "purple")[: len(names) - 1], "pale"]
    drawing = _new_rows(list(rows), [" / ".join(f"{value:,}" for value in values) for values in rows.values()], *titles)
    _show_shares(drawing.axes.xaxis)
    drawing.axes.set_xlim(0, 1)
    values = np.array(list(rows.values()), float)
    shares = values / np.maximum(values.sum(axis=1, keepdims=True), 1)
    starts = np.cumsum(shares, axis=1) - shares
    for column, name in enumerate(names):
        hovers = [f"{row}, {name}: {counts[column]:,}" for row, counts in rows.items()]
        _draw_bars(drawing, shares[:, column], hovers, [colours[column]] * len(rows), starts[:, column])
    return drawing.finish(title, note, [Key(name, "area", colour) for name, colour in zip(names, colours, strict=True)])


@page_style()
def draw_shares(title: str, shares: Sequence[Share], titles: tuple[str, str], note: str) -> Plot:
    """Bars from 0 to 100%, each with its interval as a whisker and a tick where the truth predicts its end."""
    drawing = _new_rows([share.name for share in shares], [share.text for share in shares], *titles)
    axes = drawing.axes
    _show_shares(axes.xaxis)
    axes.set_xlim(0, 1)
    axes.barh(np.arange(len(shares)) + 0.74, 1.0, 0.32, color=COLOUR["line"])
    _draw_bars(drawing, [share.value or 0.0 for share in shares],
               [f"{share.name}: {share.text}" for share in shares], [share.colour for share in shares])  # fmt: skip
    style = {"color": COLOUR["ink"], "linewidth": 1.6}
    for row, share in enumerate(shares):
        axes.plot([0.5] * 2, [row + 0.5, row + 0.98], **REFERENCE)  # at the bars alone: it crosses no text
        if share.interval is not None:
            ends = np.clip(share.interval, 0.0, 1.0)
            (whisker,) = axes.plot(ends, [row + 0.74] * 2, marker="|", markersize=11, **style)
            drawing.tag(whisker, "whisker")
        if share.expected is not None:
            axes.plot([share.expected] * 2, [row + 0.5, row + 0.98], linestyle=(0, (3, 2)), **style)
    legend = [HALF]
    legend += [INTERVAL] if any(share.interval is not None for share in shares) else []
    legend += [EXPECTED] if any(share.expected is not None for share in shares) else []
    return drawing.finish(title, note, legend)


def _show_shares(axis: Any) -> None:
    axis.set_major_locator(FixedLocator((0.0, 0.25, 0.5, 0.75, 1.0)))
    axis.set_major_formatter(FuncFormatter(_percent_tick))


def _percent_tick(value: float, _: Any = None) -> str:
    """A share in per cent, with decimals only where it has some."""
    return f"{100 * value:.6g}%"


def _shorten(text: str, room: int) -> str:
    """A text that takes up at most about `room` characters; East Asian ones count twice."""
    text = printable(text)
    widths = np.cumsum([2 if unicodedata.east_asian_width(letter) in "WF" else 1 for letter in text])
    return (
        text
        if not len(text) or widths[-1] <= room
        else text[: int(np.searchsorted(widths, room - 1, side="right"))] + "…"
    )


# Distributions


@page_style()
def draw_distributions(
    title: str, samples: Sequence[Sample], x_title: str, unit: str, boundary: str = "", note: str = ""
) -> Plot:
    """Histograms over each other, each in shares of its own label; the legend names labels without a figure.

    Args:
        boundary: what a score of 0 means; empty where it means nothing.
    """
    known = [sample for sample in samples if len(sample.values)]
    values = np.concatenate([sample.values for sample in known])
    edges = _edges(np.append(values, 0.0) if boundary else values)
    drawing = new_drawing(x_title, f"share of {unit}s in a bin")
    _show_bins(drawing.axes, edges)
    highest = 0.0
    for sample in known:
        shares = np.histogram(sample.values, edges)[0] / len(sample.values)
        highest = max(highest, float(shares.max()))
        colour = COLOUR[sample.colour]
        dash = SECOND_DASH if sample is not samples[0] else ()
        patch = drawing.axes.stairs(shares, edges, fill=True, facecolor=(colour, 0.22), edgecolor=colour, linewidth=1.5,
                                    linestyle=(0, dash) if dash else "-")  # fmt: skip
        drawing.tag(patch, "area")
    drawing.axes.set_ylim(0, 1.08 * highest)
    drawing.axes.yaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10]))
    drawing.axes.yaxis.set_major_formatter(FuncFormatter(_percent_tick))
    if boundary:
        drawing.upright(0.0, boundary)
    legend = [
        Key(sample.name, "area", sample.colour, f"n = {len(sample.values):,}"
            + ("" if len(sample.values) else f": no {unit} has this label"),
            SECOND_DASH if sample is not samples[0] else ())
        for sample in samples
    ]  # fmt: skip
    return drawing.finish(title, f"bins of {number(edges[1] - edges[0])}{note}", legend)


@page_style()
def draw_margins(title: str, margins: np.ndarray, x_title: str, note: str) -> Plot:
    """How far the model puts the preferred one above the other; left of 0 it is wrong.

    Args:
        margins: (M,) chosen minus rejected, at least one.
    """
    edges = _edges(np.append(margins, 0.0))
    counts = np.histogram(margins, edges)[0]
    drawing = new_drawing(x_title, "comparisons in a bin")
    _show_bins(drawing.axes, edges)
    drawing.axes.set_ylim(0, 1.08 * counts.max())
    drawing.axes.yaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10], integer=True))
    drawing.axes.yaxis.set_major_formatter(FuncFormatter(lambda tick, _: number(tick)))
    width = edges[1] - edges[0]
    for left, count in zip(edges[:-1], counts, strict=True):
        if count:
            colour = COLOUR["orange" if left < -width / 2 else "blue"]
            (bar,) = drawing.axes.bar(left + 0.05 * width, count, 0.9 * width, align="edge", color=colour)
            drawing.tag(bar, "bar", [f"{number(left)} to {number(left + width)}: {count:,}"])
    drawing.upright(0.0, "0")
    return drawing.finish(
        title, note, [Key("agrees with the label", "area", "blue"), Key("does not", "area", "orange")]
    )


def _edges(values: np.ndarray) -> np.ndarray:
    """Edges of at most about `NUM_BINS` bins of a round width, with an edge at 0 where 0 is among them."""
    low = float(values.min())
    # Figures that are all the same stand in one bin.
    high = max(float(values.max()), low + max(1e-6 * abs(low), 1e-6))
    edges = MaxNLocator(NUM_BINS, steps=[1, 2, 5, 10]).tick_values(low, high)
    width = edges[1] - edges[0]
    places = np.arange(np.floor(low / width), np.floor(high / width) + 2)
    return np.asarray(places * width)


def _show_bins(axes: Any, edges: np.ndarray) -> None:
    axes.set_xlim(edges[0], edges[-1])
    axes.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda tick, _: number(tick)))


# Dots and curves


@page_style()
def draw_reliability(
    title: str, predicted: Sequence[float], observed: Sequence[float], nums: Sequence[int], note: str
) -> Plot:
    """Probability of the preferred video, 0.5 to 1, against how often the label agrees, a dot a bin."""
    drawing = _new_square("predicted P of the preferred video", "share of labels that agree")
    drawing.axes.plot([0, 1], [0, 1], **REFERENCE)
    (line,) = drawing.axes.plot(predicted, observed, "o-", color=COLOUR["blue"], markersize=8, markeredgewidth=0,
                                zorder=ABOVE_AXES)  # fmt: skip
    drawing.tag(line, "dots", [
        f"said {100 * said:.1f}%, was {100 * was:.1f}% of {num:,} comparisons"
        for said, was, num in zip(predicted, observed, nums, strict=True)
    ])  # fmt: skip
    legend = [Key("this model", "line", "blue"), Key("perfectly calibrated", "line", dash=REFERENCE_DASH)]
    return drawing.finish(title, note, legend)


@page_style()
def draw_scatter(title: str, reward: np.ndarray, cost: np.ndarray, safety: np.ndarray, unit: str) -> Plot:
    """Reward against cost, with the quadrant of the safe ones in the better half.

    Args:
        reward, cost: (N,), N >= 1.
        safety: (N,) +1 safe, -1 unsafe, 0 unknown.
    """
    drawing = new_drawing("reward (higher: more helpful)", "cost (above 0: unsafe)", 340)
    axes = drawing.axes
    room = max(0.06 * float(np.ptp(reward)), 1e-6 * float(np.abs(reward).max()), 1e-12)
    axes.set_xlim(reward.min() - room, reward.max() + room)
    axes.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda tick, _: number(tick)))
    _fit_y(axes, np.append(cost, 0.0), log_scale=False)
    middle = float(np.median(reward))
    axes.fill_between([middle, axes.get_xlim()[1]], axes.get_ylim()[0], 0.0, color=COLOUR["green"], alpha=0.12,
                      linewidth=0)  # fmt: skip
    shown = np.unique(np.linspace(0, len(reward) - 1, min(len(reward), MAX_DOTS)).round().astype(int))
    legend = []
    for sign, name, colour in (
        (0, "not labelled", "grey"),
        (1, "labelled safe", "blue"),
        (-1, "labelled unsafe", "orange"),
    ):
        if not np.any(safety == sign):
            continue
        rows = shown[safety[shown] == sign]
        alpha = 0.45 if len(shown) > 500 else 0.8
        style: dict[str, Any] = {"marker": "o", "markersize": 4, "markeredgewidth": 0, "alpha": alpha}
        if sign < 0:  # few of them lie among the safe ones, and are to be seen there
            style = {"marker": "x", "markersize": 5, "markeredgewidth": 1.3, "alpha": 0.8}
        (dots,) = axes.plot(reward[rows], cost[rows], linestyle="", color=COLOUR[colour], **style)
        drawing.tag(dots, "scatter")
        legend.append(Key(name, "cross" if sign < 0 else "dot", colour, f"n = {np.sum(safety == sign):,}"))
    drawing.level(0.0, "cost 0: the boundary")
    drawing.upright(middle, "median reward")
    legend.append(Key("safe and in the better half", "area", "green", alpha=0.12))
    inside = (reward > middle) & (cost <= 0)
    note = f"n = {len(reward):,} {unit}s"
    if len(shown) < len(reward):
        note += f", {len(shown):,} of them drawn, evenly taken in the order of the data"
    note += f"; {np.sum(inside):,} ({100 * np.mean(inside):.1f}%) lie in the safe quadrant"
    if np.any(labelled := inside & (safety != 0)):
        unsafe = int(np.sum(safety[labelled] < 0))
        note += f", and people call {unsafe:,} of the {np.sum(labelled):,} labelled ones there unsafe"
    return drawing.finish(title, note, legend)


@page_style()
def draw_precision_recall(
    title: str, scores: np.ndarray, applies: np.ndarray, flags: tuple[float, float] | None, unit: str, note: str
) -> Plot:
    """Precision against recall over all thresholds, and where the model's own threshold lies.

    Args:
        scores: (N,) logits.
        applies: (N,) bool, of both values.
        flags: recall and precision of the model's flags, if it has any.
    """
    from sklearn.metrics import precision_recall_curve  # a second to import, and no other page needs it

    precision, recall, _ = precision_recall_curve(applies, scores)
    precision, recall = precision[-2::-1], recall[-2::-1]  # from the highest threshold, without its made-up end
    # Where one more is found; in between, precision only falls.
    found = np.append(np.flatnonzero(np.diff(recall, prepend=0.0)), len(recall) - 1)
    kept = found[np.unique(np.linspace(0, len(found) - 1, min(len(found), MAX_STEPS)).round().astype(int))]
    recall, precision = recall[kept], precision[kept]
    if len(kept) == 1:  # a single threshold has no line
        recall, precision = np.append(0.0, recall), np.append(precision, precision)
    drawing = _new_square(f"recall: share of such {unit}s flagged", "precision: share of flags right")
    share = float(np.mean(applies))
    drawing.level(share, f"{100 * share:.2g}%: flags at random", label_first=True)
    (line,) = drawing.axes.plot(recall, precision, color=COLOUR["blue"])
    drawing.tag(line, "line")
    legend = [Key("any threshold", "line", "blue")]
    if flags is not None:
        drawing.axes.plot(*flags, "o", color=COLOUR["orange"], markersize=10, markeredgewidth=0)
        legend.append(Key("the model's flags", "dot", "orange"))
    return drawing.finish(title, note, legend)


def _new_square(x_title: str, y_title: str) -> Drawing:
    """Axes from 0 to 100% in both directions."""
    drawing = new_drawing(x_title, y_title, right=24)
    drawing.axes.set(xlim=(0, 1), ylim=(0, 1))
    _show_shares(drawing.axes.xaxis)
    _show_shares(drawing.axes.yaxis)
    return drawing
