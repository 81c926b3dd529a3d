"""Finds unknown fields, which may be misspelt, and prompts without text; the reader accepts both."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import Any

from safe_rlhf_video.audit.sections import FieldCoverage, UnknownField
from safe_rlhf_video.audit.splits import NUM_EXAMPLES, Split
from safe_rlhf_video.data.records import DIMENSIONS, HARM_LABELS, SUB_DIMENSIONS

_KNOWN = (
    *DIMENSIONS,
    *SUB_DIMENSIONS,
    *HARM_LABELS,
    *("prompt_type", "prompt_labels", "sub_preferences", "video_labels", "is_safe", "generated_from", "video_text"),
)
_NESTED = ("sub_preferences", "prompt_labels", "video_labels")
# Matches "helpful" to helpfulness, but not "prompt_source" to prompt_text.
_LIKENESS = 0.75


def audit_fields(split: Split) -> FieldCoverage:
    """Finds the unknown fields of one split, the known field that each resembles, and blank prompts."""
    counts: Counter[str] = Counter()
    counts.update(_names((pair.extra for pair in split.pairs), ""))
    if split.mentions:
        counts.update(_names((video.extra for video in split.mentions), "video." if split.pairs else ""))
    else:
        counts.update(_names((record.extra for record in split.prompts.values()), ""))
    blank = [prompt_id for prompt_id, record in split.prompts.items() if not record.prompt_text.strip()]
    unknown = {name: UnknownField(number, _resembles(name.rpartition(".")[2])) for name, number in counts.most_common()}
    return FieldCoverage(unknown, len(blank), blank[:NUM_EXAMPLES])


def _names(extras: Iterable[Mapping[str, Any]], before: str) -> Iterable[str]:
    for extra in extras:
        for key, value in extra.items():
            if key in _NESTED and isinstance(value, dict):
                yield from (f"{before}{key}.{name}" for name in value)
            else:
                yield before + key


def _resembles(name: str) -> str | None:
    close = get_close_matches(name.lower(), _KNOWN, n=1, cutoff=_LIKENESS)
    return close[0] if close else None
