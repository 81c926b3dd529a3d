"""Builds and writes SafeSora's pair records from other sources: ids from contents, and a note of each doubtful row."""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safe_rlhf_video.data.config_files import write_records
from safe_rlhf_video.data.datasets import PairDataset
from safe_rlhf_video.data.records import DIMENSIONS, TIE, VIDEO_NAMES
from safe_rlhf_video.data.video_folder import VideoFolder
from safe_rlhf_video.errors import SampleError
from safe_rlhf_video.files import write_whole

REPEATED = "a comparison that an earlier row has too"


class Conversion:
    """Collects the pair records of one source.

    Attributes:
        records: what `add_pair` made.
        found: finding -> where, in the order of the source.
    """

    def __init__(self) -> None:
        self.records: list[dict[str, Any]] = []
        self.found: dict[str, list[str]] = {}
        self._times: Counter[tuple[str, ...]] = Counter()

    def note(self, finding: str, where: str) -> None:
        """Notes a finding for the user; `where` names file and row."""
        self.found.setdefault(finding, []).append(where)

    def add_pair(
        self,
        where: str,
        prompt_text: str,
        videos: Sequence[Mapping[str, Any]],
        preferences: Mapping[str, str | None],
        **more: Any,
    ) -> None:
        """Adds the record of one comparison; notes missing labels, ties and repeated comparisons.

        Args:
            where: file and row.
            prompt_text: the same text is the same prompt.
            videos: two records with different `video_id`s.
            preferences: dimension -> "video_0", "video_1", "tie" or None; all but SafeSora's two dimensions become
                sub-preferences.
            more: further fields of the record; None and empty values are left out.
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
        # A pair in either order is one comparison, but only the same order would have the same id.
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


@dataclass(frozen=True)
class ConvertedFile:
    """A config file that was written.

    Attributes:
        dataset: what is in it.
        num_missing_clips: clips that are not there yet.
        findings_file: lists every finding with its row.
    """

    dataset: PairDataset
    num_missing_clips: int
    findings_file: Path


def write_conversion(out: Path, records: list[dict[str, Any]], found: Mapping[str, Sequence[str]]) -> ConvertedFile:
    """Checks converted records as training will, then writes them, and beside them the findings.

    Args:
        out: the config file, such as config.json.gz; the findings go to config.findings.jsonl.
        records, found: what a conversion gives.

    Raises:
        SampleError: there is no record, a record is wrong, or a file cannot be written.
    """
    if not records:
        raise SampleError(f"{out}: there is no comparison to write")
    dataset = PairDataset(out, records, VideoFolder(out.parent, False, str(out)))
    clips = dataset.video_files(video for video in dataset.videos if video.video_path is not None)
    findings_file = out.with_name(f"{out.name.removesuffix('.gz').removesuffix('.json')}.findings.jsonl")
    lines = [json.dumps({"where": where, "finding": finding}) for finding, rows in found.items() for where in rows]
    write_records(out, records)
    try:
        write_whole(findings_file, "".join(f"{line}\n" for line in lines))
    except OSError as error:
        raise SampleError(
            f"{findings_file}: cannot be written ({error.strerror}); check the disk and rights"
        ) from error
    return ConvertedFile(dataset, sum(not os.path.isfile(clip) for clip in clips), findings_file)


def digest(text: str) -> str:
    """SHA-256 of a text as 64 hexadecimal digits, so that a text has the same id in every file."""
    return hashlib.sha256(text.encode()).hexdigest()
