"""Writes docs/configuration.md: every field of a training config, with its default and its meaning.

python tools/write_configuration_docs.py

The page is made from the dataclasses of training/config.py and their docstrings; a test keeps it up to date.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from safe_rlhf_video.field_docs import SectionDoc, read_sections
from safe_rlhf_video.training.config import TrainConfig

PAGE = Path(__file__).resolve().parents[1] / "docs" / "configuration.md"
INTRODUCTION = """# Configuration

<!-- Written by tools/write_configuration_docs.py; change the docstrings of training/config.py instead. -->

Every field of a training config ([training.md](training.md)), with its default. A YAML file sets only what differs from
the defaults; `configs/` holds examples. The command line overrides both: `--optimization.epochs 1`. A field that is
unknown or has a wrong value is an error before anything is loaded. A field without effect is named when the run starts;
on the command line it is an error. With the embedded backbone, frames have 32x32 pixels in multiples of 8 unless
`sampling` sets a size.
"""


def main() -> None:
    PAGE.write_text(write_page(), encoding="utf-8")
    print(f"wrote {PAGE}")


def write_page() -> str:
    """Return the page as Markdown."""
    lines = [line for section in read_sections(TrainConfig) for line in write_section(section)]
    return "\n".join([INTRODUCTION, *lines]).rstrip() + "\n"


def write_section(section: SectionDoc) -> Iterator[str]:
    """Yield the lines for a section."""
    if section.path:
        yield from (f"## `{section.path}`", "", section.summary.replace("<", "&lt;"), "")
    yield from ("| field | default | meaning |", "|---|---|---|")
    for one in section.fields:
        allowed = ", ".join(f"`{choice}`" for choice in one.choices)
        meaning = one.meaning + (f" One of {allowed}." if allowed else "")
        default = f"`{one.default}`" if one.default else "required"
        yield f"| `{one.path}` | {default} | {meaning.replace('|', chr(92) + '|')} |"
    yield ""


if __name__ == "__main__":
    main()
