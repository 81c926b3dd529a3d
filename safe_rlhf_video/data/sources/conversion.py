"""What conversions to SafeSora's pair records share: ids from contents, and a note of everything that is doubtful."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from safe_rlhf_video.data.records import DIMENSIONS, TIE, VIDEO_NAMES

REPEATED = "a comparison that stood in an earlier row too"


class Conversion:
    """The pair records of one source, made one after the other.

    Attributes:
        records: what `add_pair` made.
        found: finding -> where, in the order of the source.
    """

    def __init__(self) -> None:
        self.records: list[dict[str, Any]] = []
        self.found: dict[str, list[str]] = {}
        self._times: Counter[tuple[str, ...]] = Counter()

    def note(self, finding: str, where: str) -> None:
        """Keep a finding for the user; `where` names file and row."""
        self.found.setdefault(finding, []).append(where)

    def add_pair(
        self,
        where: str,
        prompt_text: str,
        videos: Sequence[Mapping[str, Any]],
        preferences: Mapping[str, str | None],
        **more: Any,
    ) -> None:
        """Make the record of one comparison; notes missing labels, ties, and comparisons that were there before.

        Args:
            where: file and row.
            prompt_text: the same text is the same prompt.
            videos: two records with different `video_id`s.
            preferences: the dimensions that the source knows -> "video_0", "video_1", "tie" or None; those that are not
                SafeSora's two become sub-preferences.
            more: further fields of the record; those that are None or empty are left out.
        """
        for dimension, preferred in preferences.items():
            if preferred is None:
                self.note(f"no label of {dimension}", where)
            elif preferred == TIE:
                self.note(f"a tie in {dimension}", where)
        prompt_id = digest(prompt_text)
        ids = [str(video["video_id"]) for video in videos]
        key = (prompt_id, *ids)
        self._times[key] += 1
        # Both orders are one comparison, but only the same order would have the same id.
        if self._times[key] + self._times[prompt_id, *reversed(ids)] > 1:
            self.note(REPEATED, where)
        sub_preferences = {name: value for name, value in preferences.items() if name not in DIMENSIONS}
        self.records.append(
            {
                "pair_id": digest("/".join((*key, str(self._times[key]))))[:32],
                "prompt_id": prompt_id,
                "prompt_text": prompt_text,
                **dict(zip(VIDEO_NAMES, videos, strict=True)),
                **{name: preferences.get(name) for name in DIMENSIONS},
                **({"sub_preferences": sub_preferences} if sub_preferences else {}),
                **{name: value for name, value in more.items() if value},
            }
        )


def digest(text: str) -> str:
    """SHA-256 of a text as 64 hexadecimal digits: the same text has the same id in whatever file it stands."""
    return hashlib.sha256(text.encode()).hexdigest()
