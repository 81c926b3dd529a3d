"""Bars and ranges in HTML and CSS; everything that is shown goes through `escape`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from safe_rlhf_video.pages.document import escape

STYLE = """
:root { --ok: #23753b; --look: #915f00; --problem: #b3261e; --one: #2f6fb3; --two: #d98b2b; --three: #8c6bb1;
  --none: #c9cfd5; }
@media (prefers-color-scheme: dark) {
  :root { --ok: #6fca88; --look: #e5b55c; --problem: #ff8a80; --one: #6aa5e3; --two: #e3a55a; --three: #b79ad9;
    --none: #545d66; } }
body { max-width: 60rem; line-height: 1.5; }
h1 { font-size: 1.6rem; margin: .5rem 0; }
h2 { font-size: 1.2rem; margin: 2.5rem 0 .3rem; padding-top: .6rem; border-top: 1px solid var(--line); }
h3 { font-size: 1rem; margin: 1.3rem 0 .3rem; }
p { margin: .3rem 0 .7rem; max-width: 44rem; }
.dim { font-size: .9rem; }
.findings { list-style: none; padding: 0; margin: .8rem 0; }
.findings li { display: grid; grid-template-columns: 6.2rem 1fr; gap: .6rem; padding: .45rem 0;
  border-bottom: 1px solid var(--line); }
span.mark { font-weight: 600; white-space: nowrap; }
span.mark::before { content: "\\25cf\\00a0"; }
.ok { color: var(--ok); }
.look { color: var(--look); }
.problem { color: var(--problem); }
.row { display: grid; grid-template-columns: 13rem 1fr 11.5rem; gap: .8rem; align-items: center; margin: .2rem 0;
  font-size: .9rem; }
.value { color: var(--dim); font-variant-numeric: tabular-nums; }
.track { position: relative; height: .85rem; display: flex; }
.track i { height: 100%; }
.one { background: var(--one); }
.two { background: var(--two); }
.three { background: var(--three); }
.none { background: var(--none); }
.scale { border-bottom: 1px solid var(--line); }
.scale::before { content: ""; position: absolute; left: 50%; height: 100%; border-left: 1px dashed var(--dim); }
.scale i { position: absolute; opacity: .45; min-width: 2px; }
.scale b { position: absolute; width: 3px; height: 100%; margin-left: -1px; background: var(--ink); }
p.legend { max-width: none; }
.ends { display: flex; justify-content: space-between; font-size: .75rem; color: var(--dim); }
.legend i, .legend b { display: inline-block; width: .8rem; height: .8rem; margin: 0 .3rem 0 .9rem;
  vertical-align: -.08rem; }
.legend b { background: var(--ink); width: 3px; }
.legend .band { opacity: .45; }
.legend .dash { width: 0; border-left: 1px dashed var(--dim); }
@media (max-width: 40rem) {
  .row { grid-template-columns: minmax(45%, 1fr) auto; row-gap: .1rem; margin: .5rem 0; }
  .value { text-align: right; }
  .row .track, .row .ends { grid-column: 1 / -1; grid-row: 2; }
  .row.ticks { margin-top: -.4rem; }
  .findings li { grid-template-columns: 1fr; gap: 0; } }
"""

_SHADES = ("one", "two", "three", "none")
MAX_BARS = 24
RANGES_LEGEND = (
    '<p class="legend dim">Brackets are 95% intervals by resampled prompts. In the plots:<b></b>the figure'
    '<i class="one band"></i>its 95% interval<i class="dash"></i>one half</p>'
)


def bars(values: Mapping[str, float], texts: Mapping[str, str] | None = None) -> str:
    """One bar a name, the longest as wide as there is room; past MAX_BARS the rest is summed up in one."""
    shown = dict(list(values.items())[:MAX_BARS])
    if rest := len(values) - len(shown):
        shown[f"{rest} more"] = sum(list(values.values())[MAX_BARS:])
    longest = max(shown.values(), default=0) or 1
    return "".join(
        _row(
            name,
            f'<i class="one" style="width:{100 * value / longest:.2f}%"></i>',
            (texts or {}).get(name, f"{value:,}"),
        )
        for name, value in shown.items()
    )


def stacked(rows: Mapping[str, Sequence[float]], names: Sequence[str]) -> str:
    """One bar a row, cut into up to four shares of the whole; the last shade is grey."""
    shades = [*_SHADES[: len(names) - 1], _SHADES[-1]]
    legend = "".join(f'<i class="{shade}"></i>{escape(name)}' for shade, name in zip(shades, names, strict=True))
    drawn = []
    for row, values in rows.items():
        whole = sum(values) or 1
        pieces = "".join(
            f'<i class="{shade}" style="width:{100 * value / whole:.2f}%"></i>'
            for shade, value in zip(shades, values, strict=True)
        )
        drawn.append(_row(row, pieces, " / ".join(f"{value:,}" for value in values)))
    return f'<p class="legend dim">{legend}</p>' + "".join(drawn)


def ranges(rows: Iterable[tuple[str, float | None, Sequence[float] | None, str]]) -> str:
    """(name, share, interval, text): a mark on a scale from 0 to 100%, the interval behind it, as in RANGES_LEGEND."""
    drawn = []
    for name, value, interval, text in rows:
        marks = ""
        if interval is not None:
            low, high = (100 * min(max(end, 0.0), 1.0) for end in interval)
            marks += f'<i class="one" style="left:{low:.2f}%;width:{high - low:.2f}%"></i>'
        if value is not None:
            marks += f'<b style="left:{100 * value:.2f}%"></b>'
        drawn.append(_row(name, marks, text, "track scale"))
    ticks = '<span class="ends"><span>0%</span><span>50%</span><span>100%</span></span>'
    return "".join(drawn) + f'<div class="row ticks"><span></span>{ticks}<span></span></div>'


def _row(name: str, track: str, text: str, kind: str = "track") -> str:
    return (
        f'<div class="row"><span>{escape(name)}</span><span class="{kind}">{track}</span>'
        f'<span class="value">{escape(text)}</span></div>'
    )
