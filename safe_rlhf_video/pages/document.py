"""Fills in the templates of `pages/templates`, and writes pages and plots to disk."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from safe_rlhf_video.errors import ConfigError
from safe_rlhf_video.files import write_whole
from safe_rlhf_video.pages.figures import PALETTE, Missing, Plot
from safe_rlhf_video.wording import capitalise, count, decimals, percent, sentence, share, thousands, words

Panels = Mapping[str, Sequence[Plot | Missing]]  # anchor of a section -> its plots


@dataclass(frozen=True)
class Table:
    """A table in which None is a dash; on a narrow page one of more than `narrow` columns shows its rows as lists.

    Attributes:
        note: what was left out; empty where nothing was.
    """

    header: Sequence[str]
    rows: Sequence[Sequence[object]]
    narrow: int = 4
    note: str = ""


def render(template: str, **values: object) -> str:
    """Fills in a template; every text is escaped, and a name that is not given is an error."""
    return _environment().get_template(template).render(values)


@cache
def _environment() -> Environment:
    environment = Environment(loader=PackageLoader("safe_rlhf_video.pages"), autoescape=True, undefined=StrictUndefined,
                              trim_blocks=True, lstrip_blocks=True)  # fmt: skip
    environment.globals["palette"] = PALETTE
    for write in (capitalise, count, decimals, percent, sentence, share, thousands, words):
        environment.filters[write.__name__] = write
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


def write_figures(panels: Panels, folder: Path) -> str:
    """Writes every plot as PDF and PNG, named after section and title; returns what it did.

    Raises:
        ConfigError: the folder cannot be written.
    """
    plots: dict[str, Plot] = {}
    for anchor, shown in panels.items():
        for plot in shown:
            if isinstance(plot, Plot):
                name = re.sub(r"[^a-z0-9]+", "-", f"{anchor} {plot.title}".lower()).strip("-")
                taken = sum(other.partition("--")[0] == name for other in plots)
                plots[f"{name}--{taken + 1}" if taken else name] = plot
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, plot in plots.items():
            plot.save(folder, name)
    except OSError as error:
        raise ConfigError(
            f"{folder}: cannot be written ({error.strerror}); give another folder as --figures"
        ) from error
    return f"wrote {count(len(plots), 'plot')} as PDF and PNG to {folder}"
