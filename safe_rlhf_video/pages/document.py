"""The shell, the style and the plain parts of a page that needs nothing else; all text goes through `escape`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape as _escape

from safe_rlhf_video.pages.axes import Plane

# Colours stand for the same in every plot of a page: c0 to c7, counted around.
STYLE = """
:root { color-scheme: light dark; --ink: #1c2126; --dim: #5b6670; --line: #e3e7ea; --paper: #fff; --card: #f7f8f9;
  --c0: #2f6fb3; --c1: #c2571a; --c2: #23803f; --c3: #8c4fb1; --c4: #b3261e; --c5: #0f8a8a; --c6: #7d6a00;
  --c7: #5b6670; }
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
a { color: var(--c0); }
.dim { color: var(--dim); font-size: .85rem; }
.problem { color: var(--c4); }
.panels { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(22rem, 100%), 1fr)); gap: .9rem; }
figure { margin: 0; padding: .7rem; background: var(--card); border: 1px solid var(--line); border-radius: .4rem;
  break-inside: avoid; }
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
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .9rem; margin: .3rem 0; }
th, td { text-align: right; padding: .25rem .7rem .25rem 0; border-bottom: 1px solid var(--line);
  overflow-wrap: normal; }
th:first-child, td:first-child { text-align: left; min-width: 8rem; }
th { color: var(--dim); font-weight: 500; }
@media (max-width: 40rem) {
  body { padding: .7rem; }
  .wide tr { display: block; padding: .4rem 0; border-bottom: 1px solid var(--line); }
  .wide tr:first-child { display: none; }
  .wide td { display: flex; justify-content: space-between; border: 0; padding: .05rem 0; }
  .wide td:first-child { font-weight: 600; }
  .wide td:not(:first-child)::before { content: attr(data-name); color: var(--dim); }
  .wide table { width: 100%; } }
"""
_NARROW = 4


def escape(value: object) -> str:
    """Text of a data file, made harmless."""
    return _escape(str(value))


def make_document(title: str, body: str, style: str = "", head: str = "") -> str:
    """A whole page.

    Args:
        body: HTML, below the title's heading.
        style: CSS that is added to `STYLE` and wins over it.
        head: HTML.
    """
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8">{head}<title>{escape(title)}</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{STYLE}{style}</style></head>'
        f"<body><h1>{escape(title)}</h1>{body}</body></html>\n"
    )


def figure(title: str, plane: Plane, parts: Iterable[str], legend: Iterable[str], note: str) -> str:
    """A plot with its title, its legend and a line about what it is made of.

    Args:
        parts: SVG, drawn over each other.
        legend: HTML of each item.
        note: text.
    """
    items = "".join(f"<li>{item}</li>" for item in legend)
    return (
        f"<figure><h3>{escape(title)}</h3>"
        f'<svg viewBox="0 0 {plane.width} {plane.height}" role="img" aria-label="{escape(title)}">{"".join(parts)}'
        f'</svg><figcaption>{f"<ul>{items}</ul>" if items else ""}<p class="dim">{escape(note)}</p></figcaption>'
        "</figure>"
    )


def line_key(colour: int, dash: str = "") -> str:
    """A piece of a line, for a legend."""
    return (
        f'<svg class="key" viewBox="0 0 26 10"><g class="line c{colour}"><polyline points="0,5 26,5" '
        f'stroke-dasharray="{dash}"/></g></svg>'
    )


def table(header: Sequence[str], rows: Iterable[Sequence[object]], columns: int = _NARROW) -> str:
    """A table of which None is a dash.

    Args:
        columns: that a narrow page has room for; a table of more shows its rows one below the other there.
    """
    head = "".join(f"<th>{escape(name)}</th>" for name in header)
    body = "".join(
        "<tr>"
        + "".join(
            f'<td data-name="{escape(name)}">{"–" if cell is None else escape(cell)}</td>'
            for name, cell in zip(header, row, strict=True)
        )
        + "</tr>"
        for row in rows
    )
    kind = "scroll wide" if len(header) > columns else "scroll"
    return f'<div class="{kind}"><table><tr>{head}</tr>{body}</table></div>'
