"""The plots and the shell of all pages: SVG that needs nothing else, untrusted texts, and figures for papers."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT
from jinja2 import UndefinedError

from safe_rlhf_video.errors import ConfigError
from safe_rlhf_video.pages.dashboard_page import COLOURS, MARKERS, RunState, draw_panel
from safe_rlhf_video.pages.dashboard_spec import SECTIONS
from safe_rlhf_video.pages.document import render, write_figures
from safe_rlhf_video.pages.figures import PALETTE, Key, Missing, Plot, standalone_svg
from safe_rlhf_video.pages.plots import (
    ROW_TEXT,
    Line,
    Sample,
    Share,
    draw_counts,
    draw_distributions,
    draw_lines,
    draw_margins,
    draw_precision_recall,
    draw_reliability,
    draw_scatter,
    draw_shares,
    draw_stacked,
)
from safe_rlhf_video.pages.run_metrics import RunMetrics, Series
from safe_rlhf_video.wording import sentence

NASTY = "</style><script>alert(1)</script>\x00 $\\frac{1}{0}$ \u6f22\ud800 and more text"
RNG = np.random.default_rng(0)
SIGNS = np.array([1, -1, 0] * 20)

# A plot of each kind.
PLOTS: dict[str, Callable[[], Plot]] = {
    "lines": lambda: draw_lines(
        "Loss <1>", [Line(Key("a <run>", "line", "blue"), [1, 2, 3], [0.5, None, 0.25])],
        ("step", "nats"), "n = 3", {0.69: "ln 2"}),
    "log lines": lambda: draw_lines(
        "Rate", [Line(Key("a", "line", "red", dash=(7, 4)), [1, 2], [1e-6, 0.0])], ("step", "rate"), "n", {}, True),
    "counts": lambda: draw_counts(
        "Kinds", {NASTY: 3, **{f"kind {row}": row for row in range(30)}}, ("prompts", "kind"), "n"),
    "stacked": lambda: draw_stacked("Sides", {"a": (1, 2, 0)}, ("first", "second", "none"), ("share", "row"), "n"),
    "shares": lambda: draw_shares(
        "Accuracy", [Share(NASTY, 0.8, "80%", (0.7, 0.9), 0.75), Share("b", None, "–")], ("share", "who"), "n"),
    "distributions": lambda: draw_distributions(
        "Scores", [Sample("safe", RNG.normal(size=50), "blue"), Sample("unsafe", np.zeros(0), "orange")],
        "cost", "clip", "0: the boundary"),
    "margins": lambda: draw_margins("Margin", RNG.normal(size=50), "reward", "n"),
    "reliability": lambda: draw_reliability("ECE", [0.2, 0.8], [0.1, 0.9], [5, 6], "n"),
    "scatter": lambda: draw_scatter("Both", RNG.normal(size=60), RNG.normal(size=60), SIGNS, "clip"),
    "precision": lambda: draw_precision_recall("Harm", RNG.normal(size=60), SIGNS > 0, (0.5, 0.5), "clip", "n"),
}  # fmt: skip


@pytest.mark.parametrize("kind", PLOTS)
def test_a_plot_is_plain_svg_in_the_colours_of_the_page(kind: str) -> None:
    plot = PLOTS[kind]()
    svg = ElementTree.fromstring(plot.svg)
    assert {element.tag for element in svg.iter()} <= {"svg", "g", "path", "text", "use", "defs", "title"}
    assert (svg.get("role"), svg.get("aria-label")) == ("img", plot.title)
    assert sum(element.get("class") == "title" for element in svg.iter()) == 2
    for element in svg.iter():
        assert not {"onload", "xmlns"} & set(element.attrib)
        assert "#" not in element.get("style", "")
        assert "font-family" not in element.get("style", "")
        assert set(re.findall(r"var\(--(\w+)\)", element.get("style", ""))) <= set(PALETTE)
        assert not re.search(r"\b(nan|inf)\b", " ".join(element.attrib.values()))
    ids = [element.get("id") for element in svg.iter() if element.get("id")]
    assert len(ids) == len(set(ids))
    assert {element.get("href", "")[1:] for element in svg.iter("use")} == set(ids)


def test_the_same_drawing_gives_the_same_bytes_and_another_one_other_ids() -> None:
    values = RNG.normal(size=60)
    first, again, other = (draw_scatter(title, values, values, SIGNS, "clip") for title in ("One", "One", "Two"))
    assert first.svg == again.svg
    ids = [set(re.findall(r'id="(\w+)"', plot.svg)) for plot in (first, other)]
    assert ids[0]
    assert not ids[0] & ids[1]


@pytest.mark.parametrize("kind", ["stacked", "distributions", "margins"])
def test_what_is_filled_has_the_colours_of_the_legend(kind: str) -> None:
    plot = PLOTS[kind]()
    shapes = [part for part in ElementTree.fromstring(plot.svg).iter("g") if part.get("class") in ("area", "bar")]
    styles = [path.get("style", "") for part in shapes for path in part.iter("path")]
    filled = {style.partition("fill: var(--")[2].partition(")")[0] for style in styles}
    assert filled == {key.colour for key in plot.legend if not key.value.startswith("n = 0")}


def test_the_line_at_one_half_crosses_no_text() -> None:
    svg = PLOTS["shares"]().svg
    baselines = [float(y) for y in re.findall(r'<g class="(?:name|value)"><text x="[\d.]+" y="([\d.]+)"', svg)]
    lines = re.findall(r'd="M 216 ([\d.]+) L 216 ([\d.]+)" style="[^"]*dasharray: 3,4', svg)
    assert (len(baselines), len(lines)) == (4, 2)
    assert not any(float(low) < y + 3 and y - 11 < float(high) for y in baselines for low, high in lines)


@pytest.mark.parametrize("values", [(0.5, 0.5), (3.0, 3.001), (20_000.0, 20_000.5), (-2.0, -2.0), (0.0, 0.0)])
def test_no_two_ticks_of_a_level_line_read_alike(values: tuple[float, float]) -> None:
    svg = draw_lines("Level", [Line(Key("a", "line", "blue"), [1, 2], values)], ("step", "nats"), "n = 2").svg
    ticks = re.findall(r"text-anchor: end[^>]*>([^<]+)<", svg)
    assert len(ticks) >= 2
    assert len(set(ticks)) == len(ticks)


def test_no_two_names_share_a_colour() -> None:
    assert len({light for light, _ in PALETTE.values()}) == len(PALETTE)


# What the eyes see of linear RGB without one of their three kinds of cones: Machado, Oliveira and Fernandes 2009
# (IEEE Transactions on Visualization and Computer Graphics 15, 1291-1298), severity 1.
EYES = {
    "trichromat": ((1, 0, 0), (0, 1, 0), (0, 0, 1)),
    "protanope": ((0.152, 1.053, -0.205), (0.115, 0.786, 0.099), (-0.004, -0.048, 1.052)),
    "deuteranope": ((0.367, 0.861, -0.228), (0.280, 0.673, 0.047), (-0.012, 0.043, 0.969)),
    "tritanope": ((1.256, -0.077, -0.179), (-0.078, 0.931, 0.148), (0.005, 0.691, 0.304)),
}


def lab(colour: str, eyes: str) -> np.ndarray:
    """A colour in CIELAB, in which distances are about those that are seen."""
    part = np.array([int(colour[place : place + 2], 16) for place in (1, 3, 5)]) / 255
    linear = np.array(EYES[eyes]) @ np.where(part <= 0.04045, part / 12.92, ((part + 0.055) / 1.055) ** 2.4)
    to_xyz = np.array([[0.4125, 0.3576, 0.1804], [0.2127, 0.7152, 0.0722], [0.0193, 0.1192, 0.9503]])
    x, y, z = np.cbrt(np.maximum(to_xyz @ np.clip(linear, 0, 1) / to_xyz.sum(axis=1), 0.01))
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


@pytest.mark.parametrize("eyes", EYES)
@pytest.mark.parametrize("theme", [0, 1])
def test_colours_of_one_plot_differ_to_any_eyes(eyes: str, theme: int) -> None:
    """A just noticeable difference is about 2.3; teal and green, red and olive of old were 8 and 5 apart."""
    used = {key.colour for draw in PLOTS.values() for key in draw().legend if key.shape in ("area", "dot", "cross")}
    colours = {name: lab(PALETTE[name][theme], eyes) for name in {*used, *COLOURS, "blue"} - {"grey", "pale"}}
    assert {"blue", "orange", "green", "purple"} <= set(colours)
    assert not {"red", "teal", "olive"} & set(colours)
    for one, other in combinations(colours, 2):
        assert np.linalg.norm(colours[one] - colours[other]) > 11, (one, other)


def test_series_differ_without_colours() -> None:
    """By dashes and points in lines, by the outline in distributions; the legend shows the same."""
    runs = [RunMetrics(ROOT, name) for name in "abcdef"]
    for run in runs:
        run.series = {"train/loss": Series([1, 2], [0.5, 0.4])}
    (panel,) = (one for part in SECTIONS for one in part.panels if one.title == "Loss")
    plot = draw_panel(panel, runs)
    assert plot is not None
    assert len({(key.dash, key.marker) for key in plot.legend}) == len(runs)
    dots = [
        part.find("defs/path") for part in ElementTree.fromstring(plot.svg).iter("g") if part.get("class") == "dots"
    ]
    assert len({dot.get("d") for dot in dots if dot is not None}) == len(MARKERS)
    first, second = (
        Sample(name, RNG.normal(size=50), colour) for name, colour in (("safe", "blue"), ("not", "orange"))
    )
    plot = draw_distributions("Scores", [first, second], "cost", "clip")
    assert [bool(key.dash) for key in plot.legend] == [False, True]
    outlines = re.findall(r'class="area"[^>]*><path[^>]*style="([^"]*)"', plot.svg)
    assert ["dasharray" in style for style in outlines] == [False, True]


def check_paper(picture: str) -> None:
    svg = ElementTree.fromstring(picture)
    style = " ".join(part.text or "" for part in svg.iter() if part.tag.endswith("style"))
    light, dark = style.split("@media (prefers-color-scheme: dark)")
    assert ".paper { fill: #ffffff }" in light
    assert ".paper { fill: #16191c }" in dark
    (paper,) = (part for part in svg.iter() if part.get("class") == "paper")
    place = (paper.get("x", "0"), paper.get("y", "0"), paper.get("width"), paper.get("height"))
    assert place == tuple((svg.get("viewBox") or "").split())


@pytest.mark.parametrize("path", sorted((ROOT / "docs").glob("*.svg")), ids=lambda path: path.name)
def test_pictures_of_the_docs_have_their_own_paper_in_light_and_dark(path: Path) -> None:
    check_paper(path.read_text())


def test_a_drawing_is_a_picture_with_its_own_paper() -> None:
    svg = standalone_svg(PLOTS["shares"]().figure, "Shares")
    check_paper(svg)
    assert set(re.findall(r"var\(--(\w+)\)", svg)) <= set(re.findall(r"--(\w+):", svg))


def test_names_of_data_are_shortened_and_told_in_full() -> None:
    svg = PLOTS["counts"]().svg
    (name,) = re.findall(r"<text[^>]*>(&lt;/style[^<]*…)<title>", svg)
    assert "\ufffd" in name
    long = "漢" * 40
    svg = draw_counts("Kinds", {long: 1}, ("prompts", "kind"), "n").svg
    assert "漢" * ((ROW_TEXT - 2) // 2) + "…" in svg
    assert long in svg
    assert "7 more" in PLOTS["counts"]().svg
    assert draw_counts("Prices", {"$1 and $2": 1}, ("prompts", "kind"), "n").svg.count("$1 and $2") >= 2


def test_a_sentence_keeps_paths_and_names_of_the_code_as_they_are() -> None:
    for text, written in {
        "no pair is labelled": "No pair is labelled.",
        "outputs/reward: has no hashes": "outputs/reward: has no hashes.",
        "is_safe is not known": "is_safe is not known.",
        "is generated_from a name?": "Is generated_from a name?",
    }.items():
        assert sentence(text) == written


def test_templates_escape_what_they_show() -> None:
    plots = {NASTY: [Missing(NASTY, NASTY), PLOTS["lines"]()]}
    states = [RunState(NASTY, NASTY, 1)]
    page = render("dashboard.html", title=NASTY, nonce="", refresh_s=5, states=states, how=NASTY, plots=plots)
    assert "<script" not in page
    assert page.count("&lt;/style&gt;&lt;script&gt;") == 8
    with pytest.raises(UndefinedError):
        render("dashboard_body.html")


@pytest.mark.parametrize(
    "kinds", [("lines", "counts", "scatter"), pytest.param(tuple(PLOTS), marks=pytest.mark.slow)], ids=len
)
def test_figures_for_papers(tmp_path: Path, kinds: tuple[str, ...]) -> None:
    plots = [PLOTS[kind]() for kind in kinds]
    panels = {"one": [*plots, Missing("none", "none"), PLOTS["lines"]()]}
    assert write_figures(panels, tmp_path / "a") == f"wrote {len(plots) + 1} plots as PDF and PNG to {tmp_path / 'a'}"
    names = {path.name for path in (tmp_path / "a").iterdir()}
    assert {"one-loss-1.pdf", "one-loss-1--2.png", "one-both.png"} <= names
    assert len(names) == 2 * (len(plots) + 1)
    write_figures({"one": [PLOTS["lines"]()]}, tmp_path / "b")
    for name in ("one-loss-1.pdf", "one-loss-1.png"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="file: cannot be written"):
        write_figures(panels, tmp_path / "file")
