"""Writes figures, counts and names as people read them in sentences, tables and plots."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence


def number(value: float) -> str:
    """Four digits, the thousands set apart."""
    return f"{value:,.0f}" if 10_000 <= abs(value) < 1e9 else f"{value:.4g}"


def count(number: int, noun: str) -> str:
    """ "1,234 pairs", "1 pair"."""
    return f"{number:,} {noun}{'s' * (number != 1)}"


def thousands(value: int) -> str:
    """A count with its thousands set apart."""
    return f"{value:,}"


def decimals(value: float | None) -> str | None:
    """Three decimals; None without a figure."""
    return None if value is None else f"{value:.3f}"


def figure(value: float | None) -> str:
    """A figure with four digits; empty for None."""
    return "" if value is None else f"{value:.4f}"


def with_interval(value: float | None, ends: Sequence[float] | None) -> str:
    """A figure with its interval, if it has one."""
    if value is None or ends is None:
        return figure(value)
    return f"{value:.4f} [{ends[0]:.3f}, {ends[1]:.3f}]"


def with_article(noun: str) -> str:
    """ "an aesthetics label", "a correctness label": the article goes with the first letter."""
    return f"{'an' if noun[:1].lower() in 'aeiou' else 'a'} {noun}"


def verb(number: int, one: str, several: str) -> str:
    """The form of a verb that goes with a number."""
    return one if number == 1 else several


def percent(share: float | None) -> str:
    """One decimal; a dash where there is no figure."""
    return "–" if share is None else f"{100 * share:.1f}%"


def interval(ends: Sequence[float] | None) -> str:
    """In brackets, as exact as the figure before it; nothing where there is none."""
    return "" if ends is None else f" [{100 * ends[0]:.1f} to {100 * ends[1]:.1f}%]"


def size(num_bytes: float) -> str:
    """Bytes with a unit: 512 B, 31.8 GB."""
    for unit in ("B", "kB", "MB", "GB"):
        if num_bytes < 1000:
            return f"{num_bytes:.0f} B" if unit == "B" else f"{num_bytes:.1f} {unit}"
        num_bytes /= 1000
    return f"{num_bytes:.1f} TB"


def share(value: float | None, ends: Sequence[float] | None = None) -> str | None:
    """A share in per cent with its interval; None without a figure."""
    return None if value is None else percent(value) + interval(ends)


def sentence(text: str) -> str:
    """A text with a capital at its beginning and a full stop at its end, unless it is a question.

    A path or a name of the code at the beginning stays as it is.
    """
    is_name = any(letter in text.partition(" ")[0].rstrip(":,") for letter in "/_.")
    return (text if is_name else text[:1].upper() + text[1:]) + ("" if text.endswith("?") else ".")


def words(name: str) -> str:
    """A name of the code without underscores."""
    return name.replace("_", " ")


def capitalise(name: str) -> str:
    """A name of the code as a heading: "instruction_following" -> "Instruction following"."""
    text = words(name)
    return text[:1].upper() + text[1:]


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Names what may be meant by a name that is not known, as a question; "" where nothing is near it."""
    names = list(dict.fromkeys(known))
    word = _last_part(name)
    # Of a field in a section, people give the field alone, or another section.
    found = [one for one in names if "." in one and _last_part(one) == word]
    found = found or difflib.get_close_matches(name, names, cutoff=0.8)
    found = found or [one for one in names if len(word) > 3 and word in _last_part(one)]
    found = found or [one for one in names if difflib.SequenceMatcher(None, word, _last_part(one)).ratio() > 0.7]
    if "." not in name:  # two fields of one section are near each other whatever they are called
        found = found or difflib.get_close_matches(name, names, cutoff=0.6)
    return f"did you mean {' or '.join(found[:3])}?" if found else ""


def _last_part(name: str) -> str:
    return re.split(r"[.-]", name)[-1]
