"""The dashboard of some runs as one HTML page that needs nothing else."""

from __future__ import annotations

import time
from collections.abc import Sequence
from html import escape

from safe_rlhf_video.dashboards.plots import Line, draw
from safe_rlhf_video.dashboards.runs import RunMetrics
from safe_rlhf_video.dashboards.spec import SECTIONS, Panel, select

REFRESH_S = 5

STYLE = """
:root { --ink: #1c2126; --dim: #5b6670; --line: #e3e7ea; --paper: #fff; --card: #f7f8f9; --c0: #2f6fb3; --c1: #c2571a;
  --c2: #23803f; --c3: #8c4fb1; --c4: #b3261e; --c5: #0f8a8a; --c6: #7d6a00; --c7: #5b6670; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e4e8ec; --dim: #a3adb6; --line: #333a41; --paper: #16191c; --card: #1d2125; --c0: #6aa5e3;
    --c1: #e8935a; --c2: #6fca88; --c3: #bd96dd; --c4: #ff8a80; --c5: #5cc8c8; --c6: #d6c04a; --c7: #a3adb6; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1rem; max-width: 100rem; font: 16px/1.45 system-ui, sans-serif; color: var(--ink);
  background: var(--paper); overflow-wrap: anywhere; }
h1 { font-size: 1.5rem; margin: .3rem 0; }
h2 { font-size: 1.15rem; margin: 1.8rem 0 .6rem; }
h3 { font-size: .95rem; margin: 0 0 .3rem; }
p { margin: .3rem 0; }
.dim { color: var(--dim); font-size: .85rem; }
.problem { color: var(--c4); }
.panels { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(22rem, 100%), 1fr)); gap: .9rem; }
figure { margin: 0; padding: .7rem; background: var(--card); border: 1px solid var(--line); border-radius: .4rem; }
figure > svg { width: 100%; display: block; }
svg text { font-size: 14px; fill: var(--dim); }
svg text.mark { fill: var(--ink); font-size: 13px; paint-order: stroke; stroke: var(--card); stroke-width: 4px; }
.axis { fill: none; stroke: var(--dim); }
.grid { stroke: var(--line); }
.reference { stroke: var(--ink); stroke-dasharray: 3 4; opacity: .75; }
.line polyline { fill: none; stroke: currentColor; stroke-width: 2; stroke-linejoin: round; }
.line circle { fill: currentColor; }
.c0 { color: var(--c0); } .c1 { color: var(--c1); } .c2 { color: var(--c2); } .c3 { color: var(--c3); }
.c4 { color: var(--c4); } .c5 { color: var(--c5); } .c6 { color: var(--c6); } .c7 { color: var(--c7); }
figcaption ul { list-style: none; margin: .3rem 0 0; padding: 0; display: flex; flex-wrap: wrap; gap: .1rem .9rem;
  font-size: .85rem; }
.key { width: 26px; height: 10px; margin-right: .3rem; }
"""

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
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><link rel="icon" href="data:,">'
        f'<title>{escape(title)}</title><meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<style>{STYLE}</style></head><body><h1>{escape(title)}</h1><p id="state" class="problem"></p>'
        f'<div id="body">{body}</div>{script}</body></html>\n'
    )


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
        drawn = [draw(panel, lines) for panel in section.panels if (lines := _lines(panel, runs))]
        if drawn:
            parts.append(f'<h2>{escape(section.title)}</h2><div class="panels">{"".join(drawn)}</div>')
    return "".join(parts)


def _describe(run: RunMetrics) -> str:
    if not run.num_rows:
        return f"{run.name}: no row in metrics.jsonl yet"
    return f"{run.name}: step {run.last_step:,}, {run.num_rows:,} rows"


def _lines(panel: Panel, runs: Sequence[RunMetrics]) -> list[Line]:
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
