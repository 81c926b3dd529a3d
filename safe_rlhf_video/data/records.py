"""SafeSora's records, read strictly: a wrong known field is an error that names it, an unknown one is kept."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

from safe_rlhf_video.data.record_fields import (
    fail,
    read_name,
    read_non_empty_string,
    read_optional_bool,
    read_optional_string,
    read_path,
    read_string,
    require,
    show,
    unknown_fields,
)
from safe_rlhf_video.errors import SampleError
from safe_rlhf_video.heads import DIMENSION_OF_HEAD, HARM_HEADS, HEADS, SUB_HEADS, TEXT_HARM_HEADS, Head

SUB_DIMENSIONS = SUB_HEADS
DIMENSIONS = tuple(name for name in DIMENSION_OF_HEAD.values() if name not in SUB_DIMENSIONS)
ALL_DIMENSIONS = (*DIMENSIONS, *SUB_DIMENSIONS)

VIDEO_NAMES = ("video_0", "video_1")

TIE: Literal["tie"] = "tie"
Preference = Literal[0, 1, "tie"]
_PREFERENCES: Mapping[str, Preference] = MappingProxyType({"video_0": 0, "video_1": 1, "tie": TIE})


# SafeSora's key of a harm label -> its head, in the order of the files.
HARM_LABELS: Mapping[str, Head] = MappingProxyType(
    {HEADS[name].key: HEADS[name] for name in HARM_HEADS if HEADS[name].key}
)
# PKU-SafeRLHF's category of a harmful text: name in its files -> published code.
HARM_CATEGORIES: Mapping[str, str] = MappingProxyType({HEADS[name].key: HEADS[name].code for name in TEXT_HARM_HEADS})

_PROMPT_KEYS = ("prompt_id", "prompt_text", "prompt_type")
_VIDEO_KEYS = frozenset(
    (
        *_PROMPT_KEYS,
        "prompt_labels",
        "video_id",
        "video_text",
        "video_path",
        "response_text",
        "is_safe",
        "video_labels",
        "generated_from",
    )
)
_PAIR_KEYS = frozenset(("pair_id", *_PROMPT_KEYS, *VIDEO_NAMES, *DIMENSIONS, "sub_preferences"))
# The released files and their loader disagree on the name of one sub-dimension.
_SUB_PREFERENCE_KEYS = (*SUB_DIMENSIONS, "information")
_HARM_KEYS = frozenset(HARM_LABELS)


@dataclass(frozen=True, slots=True)
class PromptSample:
    """One prompt and what is known about it.

    Attributes:
        prompt_type: such as "safety_neutral" or "safety_critical".
        prompt_labels: key of `HARM_LABELS` -> whether it applies; a missing key is unknown. None without labels.
        extra: unknown fields as they are; unknown harm labels stand under "prompt_labels".
    """

    prompt_id: str
    prompt_text: str
    prompt_type: str | None
    prompt_labels: Mapping[str, bool] | None
    extra: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class VideoSample:
    """One generated video and what is known about it; in a text corpus, one response in its place.

    Attributes:
        prompt_id, prompt_text, prompt_type: of the prompt it was generated from.
        prompt_labels: harm labels of the prompt alone, as `PromptSample.prompt_labels`.
        video_id: unique within its prompt.
        video_text: the text shown beside the video, where the file has one.
        video_path: as written in the file; `PairDataset.video_file` tells where the clip lies. None for a response.
        response_text: the response in a text corpus, which has no clip; None for a video.
        is_safe: None where nobody has labelled it.
        harm_labels: key of `HARM_LABELS` -> whether it applies; a key that is missing is unknown. None without labels.
        generated_from: the generator's name.
        extra: fields that SafeSora has not, as they are; unknown harm labels stand under "video_labels" and
            "prompt_labels".
        harm_categories: of a response, name of `HARM_CATEGORIES` -> whether it applies; a missing name is unknown. None
            without any.
        severity_level: of a response, 0 none to 3 severe; None where nobody has labelled it.
    """

    prompt_id: str
    prompt_text: str
    prompt_type: str | None
    prompt_labels: Mapping[str, bool] | None
    video_id: str
    video_text: str | None
    video_path: str | None
    response_text: str | None
    is_safe: bool | None
    harm_labels: Mapping[str, bool] | None
    generated_from: str | None
    extra: Mapping[str, Any]
    harm_categories: Mapping[str, bool] | None = None
    severity_level: int | None = None

    @property
    def name(self) -> str:
        """What messages, scores and frame stores call it: prompt_id/video_id."""
        return f"{self.prompt_id}/{self.video_id}"


@dataclass(frozen=True, slots=True)
class PairSample:
    """Two videos of one prompt and which of them people prefer.

    Attributes:
        pair_id: unique within its file.
        prompt_id, prompt_text, prompt_type: of the prompt of both videos.
        video_0, video_1: two different videos.
        preferences: each of `ALL_DIMENSIONS` -> 0 or 1, the preferred video, `TIE` where people found both equal, or
            None without a label. "harmlessness" names the safer video.
        extra: unknown fields as they are; unknown sub-preferences stand under "sub_preferences".
    """

    pair_id: str
    prompt_id: str
    prompt_text: str
    prompt_type: str | None
    video_0: VideoSample
    video_1: VideoSample
    preferences: Mapping[str, Preference | None]
    extra: Mapping[str, Any]


def parse_pair(record: Any, where: str) -> PairSample:
    """Read one record of a pair file.

    Args:
        record: the record as JSON gives it.
        where: file and row, such as "SafeSora/config-train.json.gz row 17", for messages; rows are counted from 0.

    Raises:
        SampleError: a known field is missing or wrong; the one-line message names file, row and field.
    """
    if not isinstance(record, dict):
        raise SampleError(f"{where}: expected an object with the fields of a pair, got {show(record)}")
    prompt = prompt_id, prompt_text, prompt_type = _parse_prompt_fields(record, where)
    video_0, video_1 = (
        _parse_video_of(_object(record, name, where), f"{name}.", prompt, where) for name in VIDEO_NAMES
    )
    if video_0.video_id == video_1.video_id:
        raise SampleError(
            f"{where} field video_1.video_id: {show(video_1.video_id)} is video_0 too, expected two different videos"
        )
    sub_preferences = record.get("sub_preferences")
    if sub_preferences is None:
        sub_preferences = {}
    elif not isinstance(sub_preferences, dict):
        fail(where, "sub_preferences", "an object or null", sub_preferences)
    extra = unknown_fields(record, _PAIR_KEYS)
    if unknown := unknown_fields(sub_preferences, _SUB_PREFERENCE_KEYS):
        extra["sub_preferences"] = unknown
    return PairSample(
        pair_id=read_non_empty_string(record, "pair_id", where),
        prompt_id=prompt_id,
        prompt_text=prompt_text,
        prompt_type=prompt_type,
        video_0=video_0,
        video_1=video_1,
        preferences={name: _preference(record, name, "", where) for name in DIMENSIONS}
        | _parse_sub_preferences(sub_preferences, where),
        extra=extra,
    )


def parse_video(record: Any, where: str) -> VideoSample:
    """Read one record of a video file (SafeSora-Label); arguments and errors as those of `parse_pair`."""
    if not isinstance(record, dict):
        raise SampleError(f"{where}: expected an object with the fields of a video, got {show(record)}")
    return _parse_video(record, "", _parse_prompt_fields(record, where), where)


def parse_prompt(record: Any, where: str) -> PromptSample:
    """Read one record of a prompt file (SafeSora-Eval); arguments and errors as those of `parse_pair`."""
    if not isinstance(record, dict):
        raise SampleError(f"{where}: expected an object with the fields of a prompt, got {show(record)}")
    prompt_id, prompt_text, prompt_type = _parse_prompt_fields(record, where)
    extra = unknown_fields(record, (*_PROMPT_KEYS, "prompt_labels"))
    labels = _parse_harm_labels(record, "prompt_labels", "", where, extra)
    return PromptSample(prompt_id, prompt_text, prompt_type, labels, extra)


def _parse_prompt_fields(record: dict[str, Any], where: str) -> tuple[str, str, str | None]:
    return (
        read_name(record, "prompt_id", where),
        read_string(record, "prompt_text", where),
        read_optional_string(record, "prompt_type", where),
    )


def _parse_sub_preferences(record: dict[str, Any], where: str) -> dict[str, Preference | None]:
    values = {name: _preference(record, name, "sub_preferences.", where) for name in _SUB_PREFERENCE_KEYS}
    information, informativeness = values.pop("information"), values["informativeness"]
    if information is not None and informativeness is not None and information != informativeness:
        raise SampleError(
            f"{where} field sub_preferences.information: contradicts sub_preferences.informativeness, "
            "expected one of them or the same value twice"
        )
    if informativeness is None:
        values["informativeness"] = information
    return values


def _parse_video_of(record: dict[str, Any], field: str, prompt: tuple[str, str, str | None], where: str) -> VideoSample:
    """A video of a pair; `field` is what stands before the names of its fields in messages: "video_0."."""
    for key, expected in zip(_PROMPT_KEYS, prompt, strict=True):
        # Releases differ in whether a video repeats its prompt; where it does, it must be the pair's.
        if record.get(key) not in (None, expected):
            fail(where, field + key, f"the pair's {key} {show(expected)}", record[key])
    return _parse_video(record, field, prompt, where)


def _parse_video(record: dict[str, Any], field: str, prompt: tuple[str, str, str | None], where: str) -> VideoSample:
    is_safe = read_optional_bool(record, "is_safe", where, field)
    response_text = read_optional_string(record, "response_text", where, field)
    if response_text is None:
        video_path = read_path(record, "video_path", where, field)
    elif record.get("video_path") is not None:
        fail(where, f"{field}video_path", "null beside a response_text, which has no clip", record["video_path"])
    else:
        video_path = None
    extra = unknown_fields(record, _VIDEO_KEYS)
    harm_labels = _parse_harm_labels(record, "video_labels", field, where, extra)
    prompt_labels = _parse_harm_labels(record, "prompt_labels", field, where, extra)
    prompt_id, prompt_text, prompt_type = prompt
    is_text = response_text is not None
    return VideoSample(
        prompt_id=prompt_id,
        prompt_text=prompt_text,
        prompt_type=prompt_type,
        prompt_labels=prompt_labels,
        video_id=read_name(record, "video_id", where, field),
        video_text=read_optional_string(record, "video_text", where, field),
        video_path=video_path,
        response_text=response_text,
        is_safe=is_safe,
        harm_labels=harm_labels,
        generated_from=read_optional_string(record, "generated_from", where, field),
        extra=extra,
        harm_categories=read_harm_categories(record, "harm_categories", where, field) if is_text else None,
        severity_level=read_severity(record, "severity_level", where, field) if is_text else None,
    )


def read_harm_categories(record: dict[str, Any], key: str, where: str, field: str = "") -> dict[str, bool] | None:
    """PKU-SafeRLHF's categories of a response, without those that are null; None where the field is null or missing."""
    written = record.get(key)
    if written is None:
        return None
    if not isinstance(written, dict):
        fail(where, field + key, "an object or null", written)
    for name, value in written.items():
        if name not in HARM_CATEGORIES:
            fail(where, field + key, "the 19 published names of harm categories", name)
        if value is not None and not isinstance(value, bool):
            fail(where, f"{field}{key}.{name}", "true, false or null", value)
    return {name: value for name, value in written.items() if value is not None}


def read_severity(record: dict[str, Any], key: str, where: str, field: str = "") -> int | None:
    """PKU-SafeRLHF's severity of a response; None where the field is null or missing."""
    value, max_level = record.get(key), len(HEADS["severity"].levels) - 1
    if value is not None and (type(value) is not int or not 0 <= value <= max_level):
        fail(where, field + key, f"a whole number from 0 to {max_level}, or null", value)
    return value


def contradicts_severity(is_safe: bool | None, severity_level: int | None) -> bool:
    """Whether a response is called safe and severe at once, or neither."""
    return is_safe is not None and severity_level is not None and is_safe == (severity_level > 0)


def _parse_harm_labels(
    record: dict[str, Any], key: str, field: str, where: str, extra: dict[str, Any]
) -> dict[str, bool] | None:
    """The labels under `key`; those that nobody knows go to `extra`."""
    written = record.get(key)
    if written is None:
        return None
    if not isinstance(written, dict):
        fail(where, field + key, "an object or null", written)
    labels = {}
    for name, value in written.items():
        if name not in _HARM_KEYS:
            extra.setdefault(key, {})[name] = value
        elif isinstance(value, bool):
            labels[name] = value
        elif value is not None:
            fail(where, f"{field}{key}.{name}", "true, false or null", value)
    return labels


def _preference(record: dict[str, Any], key: str, field: str, where: str) -> Preference | None:
    value = record.get(key)
    if value is None:
        return None
    preferred = _PREFERENCES.get(value) if isinstance(value, str) else None
    if preferred is None:
        raise SampleError(
            f"{where} field {field}{key}: {show(value)} names no video of the pair, "
            "expected 'video_0', 'video_1', 'tie' or null"
        )
    return preferred


def _object(record: dict[str, Any], key: str, where: str) -> dict[str, Any]:
    value = require(record, key, "an object with the fields of a video", where)
    if not isinstance(value, dict):
        fail(where, key, "an object with the fields of a video", value)
    return value
