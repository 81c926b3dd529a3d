"""Exports samples to tables of the `datasets` library, with typed columns nested as in SafeSora's files."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from safe_rlhf_video.data.records import (
    DIMENSIONS,
    HARM_LABELS,
    SUB_DIMENSIONS,
    TIE,
    VIDEO_NAMES,
    PairSample,
    Preference,
    PromptSample,
    VideoSample,
)

if TYPE_CHECKING:
    import datasets

_PROMPT_FIELDS = {"prompt_id": "string", "prompt_text": "string", "prompt_type": "string"}
_HARM_FIELDS = dict.fromkeys(HARM_LABELS, "bool")
_VIDEO_FIELDS = {
    **_PROMPT_FIELDS,
    "prompt_labels": _HARM_FIELDS,
    "video_id": "string",
    "video_text": "string",
    "video_path": "string",
    "response_text": "string",
    "is_safe": "bool",
    "video_labels": _HARM_FIELDS,
    "generated_from": "string",
    "extra": "string",
}
_PAIR_FIELDS = {
    "pair_id": "string",
    **_PROMPT_FIELDS,
    "video_0": _VIDEO_FIELDS,
    "video_1": _VIDEO_FIELDS,
    **dict.fromkeys(DIMENSIONS, "string"),
    "sub_preferences": dict.fromkeys(SUB_DIMENSIONS, "string"),
    "extra": "string",
}

PathOf = Callable[[VideoSample], str | None]


def pairs_to_hf(pairs: Sequence[PairSample], path_of: PathOf) -> datasets.Dataset:
    """A table of pairs; `path_of` gives each video's `video_path`."""
    return _build([_pair_row(pair, path_of) for pair in pairs], _PAIR_FIELDS)


def videos_to_hf(videos: Sequence[VideoSample], path_of: PathOf) -> datasets.Dataset:
    """A table of videos; `path_of` as in `pairs_to_hf`."""
    return _build([_video_row(video, path_of) for video in videos], _VIDEO_FIELDS)


def prompts_to_hf(prompts: Sequence[PromptSample]) -> datasets.Dataset:
    """A table of prompts."""
    return _build(
        [_prompt_row(prompt) for prompt in prompts],
        {**_PROMPT_FIELDS, "prompt_labels": _HARM_FIELDS, "extra": "string"},
    )


def _pair_row(pair: PairSample, path_of: PathOf) -> dict[str, Any]:
    names = {name: _preferred(preferred) for name, preferred in pair.preferences.items()}
    return {
        "pair_id": pair.pair_id,
        "prompt_id": pair.prompt_id,
        "prompt_text": pair.prompt_text,
        "prompt_type": pair.prompt_type,
        "video_0": _video_row(pair.video_0, path_of),
        "video_1": _video_row(pair.video_1, path_of),
        **{name: names[name] for name in DIMENSIONS},
        "sub_preferences": names,
        "extra": _as_text(pair.extra),
    }


def _video_row(video: VideoSample, path_of: PathOf) -> dict[str, Any]:
    return {
        "prompt_id": video.prompt_id,
        "prompt_text": video.prompt_text,
        "prompt_type": video.prompt_type,
        "prompt_labels": video.prompt_labels,
        "video_id": video.video_id,
        "video_text": video.video_text,
        "video_path": path_of(video),
        "response_text": video.response_text,
        "is_safe": video.is_safe,
        "video_labels": video.harm_labels,
        "generated_from": video.generated_from,
        "extra": _as_text(video.extra),
    }


def _prompt_row(prompt: PromptSample) -> dict[str, Any]:
    return {
        "prompt_id": prompt.prompt_id,
        "prompt_text": prompt.prompt_text,
        "prompt_type": prompt.prompt_type,
        "prompt_labels": prompt.prompt_labels,
        "extra": _as_text(prompt.extra),
    }


def _preferred(preferred: Preference | None) -> str | None:
    return preferred if preferred is None or preferred == TIE else VIDEO_NAMES[preferred]


def _as_text(extra: Mapping[str, Any]) -> str | None:
    return json.dumps(extra) if extra else None


def _build(rows: list[dict[str, Any]], fields: Mapping[str, Any]) -> datasets.Dataset:
    # Slow to import, and nothing else in data/ needs them.
    import datasets
    import pyarrow as pa

    features = _features(fields)
    # Arrow reads nested rows in C++; `Dataset.from_list` walks through them in Python.
    return datasets.Dataset(pa.Table.from_pylist(rows, schema=features.arrow_schema))


def _features(fields: Mapping[str, Any]) -> datasets.Features:
    import datasets

    return datasets.Features(
        {name: datasets.Value(kind) if isinstance(kind, str) else _features(kind) for name, kind in fields.items()}
    )
