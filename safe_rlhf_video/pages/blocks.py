"""Describes what a page consists of, and renders it with the templates of `pages/templates`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import ClassVar

from jinja2 import Environment, PackageLoader, StrictUndefined

from safe_rlhf_video.errors import ConfigError
from safe_rlhf_video.files import write_whole
from safe_rlhf_video.pages.figures import PALETTE, Plot
from safe_rlhf_video.wording import count

NARROW = 4  # columns that a narrow page has room for


@dataclass(frozen=True)
class Text:
    """A paragraph; a small one is a remark."""

    kind: ClassVar[str] = "text"
    text: str
    is_small: bool = False


@dataclass(frozen=True)
class Heading:
    """A heading within a section."""

    kind: ClassVar[str] = "heading"
    text: str


@dataclass(frozen=True)
class Items:
    """A list of short texts."""

    kind: ClassVar[str] = "items"
    texts: Sequence[str]


@dataclass(frozen=True)
class Table:
    """A table in which None is a dash; on a narrow page one of more than `narrow` columns shows its rows as lists."""

    kind: ClassVar[str] = "table"
    header: Sequence[str]
    rows: Sequence[Sequence[object]]
    narrow: int = NARROW


@dataclass(frozen=True)
class Missing:
    """A figure that cannot be had, in place of its plot."""

    kind: ClassVar[str] = "missing"
    title: str
    reason: str


@dataclass(frozen=True)
class Panels:
    """Plots side by side, as many as there is room for."""

    kind: ClassVar[str] = "panels"
    panels: Sequence[Plot | Missing]


Block = Text | Heading | Items | Table | Panels


@dataclass(frozen=True)
class Section:
    """A part of a page under a heading of its own; a page leaves out one without blocks."""

    anchor: str
    title: str
    blocks: Sequence[Block]


def note(text: str) -> Text:
    """A remark in small print, as a sentence."""
    return Text(f"{text[:1].upper()}{text[1:]}.", is_small=True)


def render(template: str, **values: object) -> str:
    """Fills in a template of `pages/templates`; every text is escaped."""
    return _environment().get_template(template).render(values)


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("safe_rlhf_video.pages"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals["palette"] = PALETTE
    return environment


def write_page(page: str, out: Path) -> None:
    """Writes a page, whole or not at all.

    Raises:
        ConfigError: it cannot be written.
    """
    try:
        # Texts of data need not be text that UTF-8 can hold.
        write_whole(out, page.encode(errors="replace"))
    except OSError as error:
        raise ConfigError(f"{out}: cannot be written ({error.strerror}); give another file as --out") from error


def write_figures(sections: Sequence[Section], folder: Path) -> str:
    """Writes every plot of some sections as PDF and PNG, named after section and title; returns what it did.

    Raises:
        ConfigError: the folder cannot be written.
    """
    plots = _named_plots(sections)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, plot in plots.items():
            plot.save(folder, name)
    except OSError as error:
        raise ConfigError(
            f"{folder}: cannot be written ({error.strerror}); give another folder as --figures"
        ) from error
    return f"wrote {count(len(plots), 'plot')} as PDF and PNG to {folder}"


def _named_plots(sections: Sequence[Section]) -> dict[str, Plot]:
    named: dict[str, Plot] = {}
    for section in sections:
        for panel in (panel for block in section.blocks if isinstance(block, Panels) for panel in block.panels):
            if isinstance(panel, Plot):
                name = re.sub(r"[^a-z0-9]+", "-", f"{section.anchor} {panel.title}".lower()).strip("-")
                taken = sum(other == name or other.startswith(f"{name}--") for other in named)
                named[f"{name}--{taken + 1}" if taken else name] = panel
    return named
