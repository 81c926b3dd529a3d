"""The dashboard of some runs as one HTML page that needs nothing else."""

from __future__ import annotations

import time
from collections.abc import Sequence
from html import escape

from safe_rlhf_video.pages.dashboard.plots import Line, draw
from safe_rlhf_video.pages.dashboard.runs import RunMetrics
from safe_rlhf_video.pages.dashboard.spec import SECTIONS, Panel, select
from safe_rlhf_video.pages.document import make_document

REFRESH_S = 5

# The page of the live server asks for its body again and again; a written page has no script.
SCRIPT = """
const body = document.getElementById("body"), state = document.getElementById("state");
async function refresh() {
  if (document.hidden) return;
  try {
    const answer = await fetch("body", {cache: "no-store"});
    if (!answer.ok) throw new Error(await answer.text());
    body.innerHTML = await answer.text();
    state.textContent = "";
  } catch (error) {
    state.textContent = "No news: scripts/dashboard.py does not answer (" + error.message + ").";
  }
}
setInterval(refresh, SECONDS * 1000);
document.addEventListener("visibilitychange", refresh);
"""


def make_page(body: str, title: str, nonce: str | None = None) -> str:
    """A whole page.

    Args:
        body: as `make_body` returns it.
        nonce: of a live page's script; None writes a page without one.
    """
    script = f'<script nonce="{nonce}">{SCRIPT.replace("SECONDS", str(REFRESH_S))}</script>' if nonce else ""
    # An icon of its own, or the browser asks for one.
    icon = '<link rel="icon" href="data:,">'
    return make_document(title, f'<p id="state" class="problem"></p><div id="body">{body}</div>{script}', head=icon)


def make_title(runs: Sequence[RunMetrics]) -> str:
    """What the runs are called, together."""
    return "Training: " + ", ".join(run.name for run in runs)


def make_body(runs: Sequence[RunMetrics], is_live: bool) -> str:
    """What changes while runs train: where they stand, and every panel of the spec that has a figure."""
    when = time.strftime("%Y-%m-%d %H:%M:%S")
    how = f"looked at {when}, again every {REFRESH_S} s" if is_live else f"written {when}"
    parts = [f'<p class="dim">{"; ".join(escape(_describe(run)) for run in runs)}; {how}.</p>']
    for run in runs:
        if run.num_unreadable:
            parts.append(f'<p class="problem">{escape(run.name)}: {run.num_unreadable:,} lines of metrics.jsonl are no '
                         "rows of figures and are left out.</p>")  # fmt: skip
    for section in SECTIONS:
        drawn = [draw(panel, lines) for panel in section.panels if (lines := lines_of(panel, runs))]
        if drawn:
            parts.append(f'<h2>{escape(section.title)}</h2><div class="panels">{"".join(drawn)}</div>')
    return "".join(parts)


def _describe(run: RunMetrics) -> str:
    if not run.num_rows:
        return f"{run.name}: no row in metrics.jsonl yet"
    return f"{run.name}: step {run.last_step:,}, {run.num_rows:,} rows"


def lines_of(panel: Panel, runs: Sequence[RunMetrics]) -> list[Line]:
    """A panel's lines: a colour a metric and a dash a run; where all runs have one metric, a colour a run."""
    if panel.kind != "line":
        return []
    chosen = [(number, name) for number, run in enumerate(runs) for name in select(panel, run.series)]
    metrics = list(dict.fromkeys(name for _, name in chosen))
    lines = []
    for number, name in chosen:
        run = runs[number]
        if len(metrics) == 1:
            label, colour, dash = run.name, number, 0
        else:
            label, colour, dash = _short(name, metrics), metrics.index(name), number
            label = f"{run.name}: {label}" if len(runs) > 1 else label
        lines.append(Line(label, run.series[name], colour, dash))
    return lines


def _short(name: str, metrics: Sequence[str]) -> str:
    """The last piece of a metric's name, or all of it where that would be another's too or says nothing."""
    lasts = [each.rsplit("/", 1)[-1] for each in metrics]
    last = name.rsplit("/", 1)[-1]
    return last.replace("_", " ") if lasts.count(last) == 1 and name.count("/") > 1 else name
