"""Turns drawings of matplotlib into SVG for a page, and into PDF and PNG for papers.

Everything is drawn in the light colours of `PALETTE`. In a page each of them becomes a CSS variable, so that one SVG
follows the light or dark setting of the browser. Texts stay text, and the same drawing gives the same bytes.
"""

from __future__ import annotations

import io
import re
import warnings
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import matplotlib
from markupsafe import Markup
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.patheffects import withStroke

# Name -> light and dark colour; no two names share a light one. They are the same in every plot and in the style sheet.
# Blue, orange, green and purple are those of Okabe and Ito (2008, Color Universal Design), which colour-blind readers
# tell apart; plots use no other hues. Red, teal and olive are for words.
PALETTE = {
    "ink": ("#1c2126", "#e4e8ec"),
    "line": ("#e3e7ea", "#333a41"),
    "paper": ("#ffffff", "#16191c"),
    "card": ("#f7f8f9", "#1d2125"),
    "pale": ("#c9cfd5", "#545d66"),
    "blue": ("#0072b2", "#56b4e9"),
    "orange": ("#d55e00", "#e69f00"),
    "green": ("#009e73", "#00b386"),
    "purple": ("#cc79a7", "#cc79a8"),
    "red": ("#b3261e", "#ff8a80"),
    "teal": ("#0f7f7f", "#5cc8c8"),
    "olive": ("#7d6a00", "#d6c04a"),
    "grey": ("#5b6670", "#a3adb6"),
}
COLOUR = {name: light for name, (light, _) in PALETTE.items()}
Tag = tuple[str, Sequence[str]]
_NAME_OF = {light: name for name, light in COLOUR.items()}
_SVG, _HREF = "{http://www.w3.org/2000/svg}", "{http://www.w3.org/1999/xlink}href"
_DIGITS = re.compile(r"(\.\d\d)\d+")

WIDTH = 440  # units of the view box, which the page scales
BOTTOM = 50.0  # room below the axes
Dash = tuple[float, ...]
REFERENCE_DASH: Dash = (3, 4)
REFERENCE: dict[str, Any] = {"color": COLOUR["ink"], "linewidth": 1, "linestyle": (0, REFERENCE_DASH), "alpha": 0.75}
STYLE = {
    "svg.fonttype": "none",
    "pdf.fonttype": 42,
    "text.parse_math": False,  # a "$" of the data is a "$"
    "path.simplify": False,
    "font.size": 14,
    "axes.edgecolor": COLOUR["grey"],
    "axes.labelcolor": COLOUR["grey"],
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": COLOUR["line"],
    "xtick.color": COLOUR["grey"],
    "ytick.color": COLOUR["grey"],
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "xtick.major.pad": 8,
    "ytick.major.pad": 6,
    "xtick.minor.size": 0,
    "ytick.minor.size": 0,
    "text.color": COLOUR["ink"],
    "lines.linewidth": 2,
    "lines.scale_dashes": False,
}

HALO = ("mark", "name", "value")  # classes of texts that lines may cross
Shape = Literal["line", "area", "dot", "cross", "whisker", "tick"]
Marker = Literal["", "o", "s", "^", "D", "v", "P"]


@dataclass(frozen=True)
class Key:
    """An entry of a legend.

    Attributes:
        value: what is set in bold behind the label.
        colour: a name of `PALETTE`.
        dash: lengths of the strokes and gaps of a line, or of an area's outline; empty for a solid one.
        alpha: opacity of an area.
        marker: of a line's points, as matplotlib calls it; empty for none.
        group: the heading under which the entry stands; empty for none.
    """

    label: str
    shape: Shape
    colour: str = "ink"
    value: str = ""
    dash: Dash = ()
    alpha: float = 1.0
    marker: Marker = ""
    group: str = ""

    def handle(self) -> Any:
        """The entry for a legend of matplotlib."""
        label, colour = f"{self.label} {self.value}".strip(), COLOUR[self.colour]
        label = f"{self.group}: {label}" if self.group else label
        if self.shape == "area":
            return Patch(color=colour, alpha=self.alpha, label=label, linewidth=0)
        if self.shape == "line":
            return Line2D([], [], color=colour, linestyle=(0, self.dash) if self.dash else "-", label=label,
                          marker=self.marker or None, markersize=6, markeredgewidth=0)  # fmt: skip
        marker = {"dot": "o", "cross": "x", "whisker": "|", "tick": "|"}[self.shape]
        return Line2D([], [], color=colour, linestyle="-" if self.shape == "whisker" else "", marker=marker,
                      linewidth=1.6, label=label)  # fmt: skip


@dataclass(frozen=True)
class Plot:
    """A finished plot.

    Attributes:
        note: how many figures it is made of, and what else a reader has to know.
        svg: of the plot, without title, legend and note.
    """

    title: str
    note: str
    legend: tuple[Key, ...]
    svg: Markup
    figure: Any

    @property
    def legend_groups(self) -> dict[str, list[Key]]:
        """Heading -> its entries, in their own order."""
        groups: dict[str, list[Key]] = {}
        for key in self.legend:
            groups.setdefault(key.group, []).append(key)
        return groups

    def save(self, folder: Path, name: str) -> None:
        """Writes the plot with its legend as NAME.pdf and NAME.png.

        Raises:
            OSError: the folder cannot be written.
        """
        self.figure.patch.set_visible(True)
        with page_style():
            for text in self.figure.findobj(lambda artist: (artist.get_gid() or "").partition(":")[0] in HALO):
                text.set_path_effects([withStroke(linewidth=4, foreground="white")])
            self.figure.legend(handles=[key.handle() for key in self.legend], loc="upper left", frameon=False,
                               bbox_to_anchor=(0, 0), ncols=2)  # fmt: skip
            for suffix, metadata in (("pdf", {"CreationDate": None}), ("png", {"Software": None})):
                self.figure.savefig(folder / f"{name}.{suffix}", metadata=metadata, dpi=200, bbox_inches="tight",
                                    facecolor="white")  # fmt: skip


@dataclass(frozen=True)
class Missing:
    """A figure that cannot be had, in place of its plot."""

    title: str
    reason: str


@dataclass
class Drawing:
    """A plot while it is drawn: axes with titles at fixed places, and what the SVG says of its parts.

    Attributes:
        tags: id of an artist -> its CSS class, and the hover titles of the shapes it consists of.
    """

    axes: Any
    tags: dict[str, Tag] = field(default_factory=dict)

    def tag(self, artist: Any, kind: str, titles: Sequence[str] = ()) -> None:
        """Gives an artist a CSS class, and its shapes their hover titles."""
        name = f"{kind}:{len(self.tags)}"
        artist.set_gid(name)
        self.tags[name] = (kind, titles)

    def level(self, value: float, label: str, label_first: bool = False) -> None:
        """Draws a line across at a value of y; its label is above it, or below where there is no room above."""
        place = self.axes.transAxes.inverted().transform(self.axes.transData.transform((0, value)))[1]
        self.tag(self.axes.axhline(value, **REFERENCE), "level")
        self._mark(label, (0.01 if label_first else 0.99, value), self.axes.get_yaxis_transform(),
                   "left" if label_first else "right", "bottom" if place < 0.92 else "top")  # fmt: skip

    def upright(self, value: float, label: str) -> None:
        """Draws a line from bottom to top at a value of x; its label is on the side that has more room."""
        low, high = self.axes.get_xlim()
        self.axes.axvline(value, **REFERENCE)
        side = "left" if value < (low + high) / 2 else "right"
        self._mark(label, (value, 1.0), self.axes.get_xaxis_transform(), side, "top", 4 if side == "left" else -4)

    def _mark(self, label: str, place: tuple[float, float], transform: Any, side: str, above: str,
              aside: float = 0) -> None:  # fmt: skip
        offset = (aside, 3 if above == "bottom" else -5)
        text = self.axes.annotate(label, place, offset, transform, "offset points", ha=side, va=above, fontsize=13)
        self.tag(text, "mark")

    def finish(self, title: str, note: str, legend: Sequence[Key] = ()) -> Plot:
        """Makes the plot; nothing can be added any more."""
        figure, content = self.axes.figure, io.BytesIO()
        for artist in figure.findobj():
            artist.set_clip_on(False)
        with page_style({"svg.hashsalt": f"{title} {note}"}):  # ids of one page differ
            figure.savefig(content, format="svg", metadata={"Date": None})
        return Plot(title, note, tuple(legend), _to_markup(content.getvalue(), title, self.tags), figure)


def new_drawing(
    x_title: str, y_title: str, height: float = 300, left: float = 78, right: float = 12, top: float = 12
) -> Drawing:
    """Empty axes; sizes are in units of the view box.

    Args:
        left, right, top: room around the axes, for ticks and titles.
    """
    width, inner_height = WIDTH - left - right, height - top - BOTTOM
    figure = Figure(figsize=(WIDTH / 72, height / 72), dpi=72)
    figure.patch.set_visible(False)  # the page's colour shows through
    axes = figure.add_axes((left / WIDTH, BOTTOM / height, width / WIDTH, inner_height / height), facecolor="none")
    drawing = Drawing(axes)
    drawing.tag(axes.set_xlabel(x_title, va="baseline"), "title")
    drawing.tag(axes.set_ylabel(y_title, va="baseline"), "title")
    axes.xaxis.set_label_coords(0.5, (8 - BOTTOM) / inner_height)
    axes.yaxis.set_label_coords((13 - left) / width, 0.5)
    return drawing


@contextmanager
def page_style(more: Mapping[str, Any] | None = None) -> Iterator[None]:
    """The style of all plots; also keeps quiet about glyphs that a browser's fonts have and matplotlib's have not."""
    with matplotlib.rc_context({**STYLE, **(more or {})}), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def standalone_svg(figure: Figure, label: str) -> str:
    """A drawing in the colours of `PALETTE` as a file of its own, with paper behind it, for light and dark settings."""
    figure.patch.set_visible(False)
    content = io.BytesIO()
    with page_style({"svg.hashsalt": label}):
        figure.savefig(content, format="svg", metadata={"Date": None})
    root = ElementTree.fromstring(_to_markup(content.getvalue(), label, {}))
    light, dark = (
        f"svg {{ {' '.join(f'--{name}: {pair[i]};' for name, pair in PALETTE.items())} }} "
        f".paper {{ fill: {PALETTE['paper'][i]} }}"
        for i in (0, 1)
    )
    style = ElementTree.Element("style")
    style.text = f"{light} @media (prefers-color-scheme: dark) {{ {dark} }}"
    left, top, width, height = root.attrib["viewBox"].split()
    paper = {"class": "paper", "x": left, "y": top, "width": width, "height": height}
    root[:0] = [style, ElementTree.Element("rect", paper)]
    root.attrib |= {"xmlns": _SVG.strip("{}"), "font-family": "system-ui, sans-serif"}
    return ElementTree.tostring(root, encoding="unicode") + "\n"


def printable(text: str) -> str:
    """A text without what XML or UTF-8 cannot hold: control characters and halves of characters."""
    return "".join(letter if letter.isprintable() else "\ufffd" for letter in text)


def _to_markup(svg: bytes, label: str, tags: Mapping[str, Tag]) -> Markup:
    """SVG that can stand within a page: colours are variables, fonts the page's; it has no style and no script."""
    root = ElementTree.fromstring(svg)
    used = {href[1:] for element in root.iter() if (href := element.get(_HREF))}
    page = ElementTree.Element(
        "svg", {"viewBox": root.attrib["viewBox"], "role": "img", "aria-label": printable(label)}
    )
    page.extend([part for child in root for part in _clean(child, tags, used)])
    return Markup(ElementTree.tostring(page, encoding="unicode"))  # it escapes texts and attributes


def _clean(element: ElementTree.Element, tags: Mapping[str, Tag], used: Set[str]) -> Iterator[ElementTree.Element]:
    """An element without what the page has no use for; groups that mean nothing dissolve into their parts."""
    tag, name = element.tag.removeprefix(_SVG), element.get("id", "")
    if tag in ("metadata", "style", "clipPath"):
        return
    parts = [part for child in element for part in _clean(child, tags, used)]
    if tag in ("g", "defs") and name not in tags and not (tag == "defs" and parts):
        yield from parts
        return
    clean = ElementTree.Element(tag)
    clean.text = element.text if tag == "text" else None
    clean.extend(parts)
    if name in used:
        clean.set("id", name)
    for place in ("d", "x", "y", "transform"):
        if (text := element.get(place)) and not text.startswith("rotate(-0 "):
            clean.set(place, " ".join(_DIGITS.sub(r"\1", text).split()))
    if href := element.get(_HREF):
        clean.set("href", href)
    if style := element.get("style"):
        style = re.sub(r" font-family:[^;]*;| stroke-dashoffset: 0;", "", style)
        clean.set("style", re.sub("#[0-9a-f]{6}", lambda found: f"var(--{_NAME_OF[found[0]]})", style))
    if name in tags:
        kind, titles = tags[name]
        clean.set("class", kind)
        shapes = [*clean.iter("use")] or [*clean.iter("path")] or [*clean.iter("text")]
        styles = {shape.get("style") for shape in shapes}
        if len(shapes) > 1 and len(styles) == 1 and shapes[0].tag == "use":  # said once
            clean.set("style", styles.pop() or "")
            for shape in shapes:
                del shape.attrib["style"]
        for shape, title in zip(shapes, titles, strict=bool(titles)):
            ElementTree.SubElement(shape, "title").text = printable(title)
    yield clean
