"""Words, counts and shares as the sections of a report write them."""

from __future__ import annotations

from collections.abc import Sequence

from safe_rlhf_video.pages.document import escape


def capitalise(name: str) -> str:
    """A name of the code as a heading: "instruction_following" -> "Instruction following"."""
    words = name.replace("_", " ")
    return words[:1].upper() + words[1:]


def count(number: int, noun: str) -> str:
    """A number of things: "1 clip", "3,200 clips"; of nouns that take an s."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def with_interval(value: float | None, interval: Sequence[float] | None) -> str | None:
    """A share in per cent and its interval; None without a share."""
    if value is None:
        return None
    text = f"{100 * value:.1f}%"
    return text if interval is None else f"{text} [{100 * interval[0]:.1f}, {100 * interval[1]:.1f}]"


def together(reasons: Sequence[str]) -> list[str]:
    """Why figures are null, what several dimensions share told once.

    Args:
        reasons: "<dimension>, <figure>: <reason>" each.
    """
    shared: dict[tuple[str, str], list[str]] = {}
    for reason in reasons:
        where, _, why = reason.partition(": ")
        dimension, _, what = where.partition(", ")
        shared.setdefault((what, why), []).append(dimension)
    return [f"No {what} of {', '.join(names)}: {why}." for (what, why), names in shared.items()]


def remark(*sentences: str) -> str:
    """Text below a table, as HTML; nothing without any."""
    return f'<p class="dim">{escape(" ".join(sentences))}</p>' if sentences else ""


def grid(figures: Sequence[str]) -> str:
    """Plots side by side, as many as there is room for; nothing without any."""
    return f'<div class="panels">{"".join(figures)}</div>' if figures else ""


def missing(title: str, reason: str) -> str:
    """A figure that there is not, in place of its plot."""
    return f'<figure class="reason"><h3>{escape(title)}</h3><p class="dim">No figure: {escape(reason)}.</p></figure>'
