"""Makes the page that shows how runs go, from their metrics.jsonl and the panels of `dashboard_spec`."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

from safe_rlhf_video.pages.dashboard_spec import SECTIONS, X_TITLE, Panel, select
from safe_rlhf_video.pages.document import Panels, render
from safe_rlhf_video.pages.figures import Dash, Key, Marker, Plot
from safe_rlhf_video.pages.plots import MAX_STEPS, Line, draw_lines
from safe_rlhf_video.pages.run_metrics import RunMetrics, Series
from safe_rlhf_video.wording import count, number, words

REFRESH_S = 5
# The n-th series has the n-th of each: who sees no colours tells lines apart by their points and dashes.
COLOURS = ("blue", "orange", "green", "purple", "ink")
MARKERS: tuple[Marker, ...] = ("o", "s", "^", "D", "v", "P")
DASHES: tuple[Dash, ...] = ((), (7, 4), (2, 3), (9, 3, 2, 3))


@dataclass(frozen=True)
class RunState:
    """How far a run has come, in words, and how many lines of its file are no rows."""

    name: str
    text: str
    num_unreadable: int


def make_dashboard_page(runs: Sequence[RunMetrics], plots: Panels, nonce: str = "") -> str:
    """The whole page.

    Args:
        plots: as of `dashboard_plots`.
        nonce: of a live page's script; a written page has none.
    """
    title = f"Training: {', '.join(run.name for run in runs)}"
    state = _state(runs, is_live=bool(nonce))
    return render("dashboard.html", title=title, nonce=nonce, refresh_s=REFRESH_S, plots=plots, **state)


def make_dashboard_body(runs: Sequence[RunMetrics], plots: Panels, is_live: bool) -> str:
    """What changes while runs train: how far they are, and the plots."""
    return render("dashboard_body.html", plots=plots, **_state(runs, is_live))


def _state(runs: Sequence[RunMetrics], is_live: bool) -> dict[str, object]:
    when = time.strftime("%Y-%m-%d %H:%M:%S")
    how = f"updated {when}, and every {REFRESH_S} s" if is_live else f"written {when}"
    return {"states": [RunState(run.name, _describe(run), run.num_unreadable) for run in runs], "how": how}


def _describe(run: RunMetrics) -> str:
    if not run.num_rows:
        return f"{run.name}: no row in metrics.jsonl yet"
    return f"{run.name}: step {run.last_step:,}, {count(run.num_rows, 'row')}"


def dashboard_plots(runs: Sequence[RunMetrics]) -> dict[str, list[Plot]]:
    """Title of a section -> its plots, of every section that has a figure."""
    drawn = {
        section.title: [plot for panel in section.panels if (plot := draw_panel(panel, runs))] for section in SECTIONS
    }
    return {title: plots for title, plots in drawn.items() if plots}


def draw_panel(panel: Panel, runs: Sequence[RunMetrics]) -> Plot | None:
    """A panel of the runs that have its metrics; None if no run has, or if W&B alone shows it."""
    chosen = [(run, name) for run in runs for name in select(panel, run.series)] if panel.kind == "line" else []
    if not chosen:
        return None
    series = [run.series[name] for run, name in chosen]
    keys = _make_keys(chosen, runs)
    lines = [Line(key, each.steps, each.values) for key, each in zip(keys, series, strict=True)]
    marks = {mark.value: mark.label for mark in panel.references}
    return draw_lines(panel.title, lines, (X_TITLE, panel.unit), _describe_series(series, panel.log_scale), marks,
                      panel.log_scale)  # fmt: skip


def _make_keys(chosen: Sequence[tuple[RunMetrics, str]], runs: Sequence[RunMetrics]) -> list[Key]:
    """Colour, points and dashes of each series, and the words of the legend.

    Where all runs have one metric, each run has a colour. Else each metric has one and each run its dashes, and the
    legend has a heading for each run.
    """
    metrics = list(dict.fromkeys(name for _, name in chosen))
    keys = []
    for run, name in chosen:
        place = runs.index(run)
        known = [value for value in run.series[name].values if value is not None]
        last = number(known[-1]) if known else "not finite"
        if len(metrics) == 1:
            label, number_of_series, dash, group = run.name, place, place, ""
        else:
            label, number_of_series, dash = _shorten(name, metrics), metrics.index(name), place
            group = run.name if len(runs) > 1 else ""
        colour, marker = COLOURS[number_of_series % len(COLOURS)], MARKERS[number_of_series % len(MARKERS)]
        keys.append(Key(label, "line", colour, last, DASHES[dash % len(DASHES)], marker=marker, group=group))
    return keys


def _shorten(name: str, metrics: Sequence[str]) -> str:
    """The last piece of a metric's name, or all of it where that is another's too or says nothing."""
    lasts = [each.rsplit("/", 1)[-1] for each in metrics]
    last = name.rsplit("/", 1)[-1]
    return words(last) if lasts.count(last) == 1 and name.count("/") > 1 else name


def _describe_series(series: Sequence[Series], log_scale: bool) -> str:
    """How many figures a plot is made of."""
    few, many = (pick(len(each.steps) for each in series) for pick in (min, max))
    first, last = min(min(each.steps) for each in series), max(max(each.steps) for each in series)
    values = [value for each in series for value in each.values]
    text = f"n = {many:,}" if few == many else f"n = {few:,} to {many:,}"
    text += f" {'row' if many == 1 else 'rows'}{' a line' if len(series) > 1 else ''}, "
    text += f"steps {first:,} to {last:,}" if first < last else f"step {first:,}"
    if missing := values.count(None):
        text += f"; {missing:,} not finite: gaps"
    if log_scale and (unseen := sum(value is not None and value <= 0 for value in values)):
        text += f"; {unseen:,} zero: gaps"
    if many > MAX_STEPS:
        text += f"; each point the mean of {math.ceil(many / MAX_STEPS):,}"
    return text
