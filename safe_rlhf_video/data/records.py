"""Defines the records of SafeSora's files and reads them: a wrong known field is an error, an unknown one is kept."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Annotated, Any, Literal, Required

from pydantic import AfterValidator, Field
from typing_extensions import TypedDict

from safe_rlhf_video.contracts import OPEN, Expected, check_fields, show
from safe_rlhf_video.data.record_fields import (
    FilePath,
    Flag,
    Name,
    NonEmptyText,
    OptionalObject,
    OptionalText,
    Text,
    fail,
    refuse,
    unknown_fields,
)
from safe_rlhf_video.errors import SampleError
from safe_rlhf_video.heads import DIMENSION_OF_HEAD, GRADED_HEADS, HARM_HEADS, HEADS, SUB_HEADS, TEXT_HARM_HEADS, Head
from safe_rlhf_video.kinds.targets import classes_of

SUB_DIMENSIONS = SUB_HEADS
DIMENSIONS = tuple(name for name in DIMENSION_OF_HEAD.values() if name not in SUB_DIMENSIONS)
ALL_DIMENSIONS = (*DIMENSIONS, *SUB_DIMENSIONS)

VIDEO_NAMES = ("video_0", "video_1")

TIE: Literal["tie"] = "tie"
Preference = Literal[0, 1, "tie"]
_PREFERENCES: Mapping[str | None, Preference | None] = MappingProxyType(
    {"video_0": 0, "video_1": 1, "tie": TIE, None: None}
)


# SafeSora's key of a harm label -> its head, in the order of the files.
HARM_LABELS: Mapping[str, Head] = MappingProxyType(
    {HEADS[name].key: HEADS[name] for name in HARM_HEADS if HEADS[name].key}
)
# PKU-SafeRLHF's category of a harmful text: name in its files -> published code.
HARM_CATEGORIES: Mapping[str, str] = MappingProxyType({HEADS[name].key: HEADS[name].code for name in TEXT_HARM_HEADS})


# --- the form of the files --------------------------------------------------------------------------------------------

Choice = Annotated[Literal["video_0", "video_1", "tie"] | None, Expected("'video_0', 'video_1', 'tie' or null")]
HarmLabelFields = TypedDict("HarmLabelFields", dict.fromkeys(HARM_LABELS, Flag), total=False)  # type: ignore[misc]
HarmLabels = Annotated[HarmLabelFields | None, OptionalObject]
# The released files say "information" where their loader says "informativeness".
SubPreferenceFields = TypedDict(  # type: ignore[misc]
    "SubPreferenceFields", dict.fromkeys((*SUB_DIMENSIONS, "information"), Choice), total=False
)


def _check_category(name: str) -> str:
    if name not in HARM_CATEGORIES:
        refuse(f"one of the {len(HARM_CATEGORIES)} published names of harm categories")
    return name


def _grades(*judged: str) -> dict[str, Any]:
    heads = [HEADS[name] for name in GRADED_HEADS if HEADS[name].judges in judged]
    highest = {head.key: len(classes_of(head.name)) - 1 for head in heads}
    return {
        key: Annotated[int | None, Field(ge=0, le=most), Expected(f"a whole number from 0 to {most}, or null")]
        for key, most in highest.items()
    }


VideoGrades = TypedDict("VideoGrades", _grades("video", "both"), total=False)  # type: ignore[misc]
TextGrades = TypedDict("TextGrades", _grades("text", "both"), total=False)  # type: ignore[misc]
HarmCategories = Annotated[dict[Annotated[str, AfterValidator(_check_category)], Flag] | None, OptionalObject]


class PromptFields(TypedDict, total=False):
    """The fields of a prompt, in every record; fields that are not Required may be missing."""

    __pydantic_config__ = OPEN  # type: ignore[misc]

    prompt_id: Required[Name]
    prompt_text: Required[Text]
    prompt_type: OptionalText


class PromptRecord(PromptFields, total=False):
    """A record of a prompt file (SafeSora-Eval)."""

    prompt_labels: HarmLabels


class GeneratedFields(TypedDict, total=False):
    """What a video and a response share."""

    __pydantic_config__ = OPEN  # type: ignore[misc]

    video_id: Required[Name]
    video_text: OptionalText
    is_safe: Flag
    video_labels: HarmLabels
    prompt_labels: HarmLabels
    generated_from: OptionalText


class VideoRecord(GeneratedFields, VideoGrades, total=False):
    """A record of a video file (SafeSora-Label), or a video of a pair; its prompt's fields are `PromptFields`."""

    video_path: Required[FilePath]
    response_text: None


class ResponseRecord(GeneratedFields, TextGrades, total=False):
    """A response of a text corpus, in the place of a video."""

    response_text: Required[Text]
    video_path: Annotated[None, Expected("null beside a response_text, which has no clip")]
    harm_categories: HarmCategories


class PairRecord(PromptFields, total=False):
    """A record of a pair file."""

    pair_id: Required[NonEmptyText]
    # A VideoRecord or a ResponseRecord, by its response_text.
    video_0: Required[Annotated[dict[str, Any], Expected("an object")]]
    video_1: Required[Annotated[dict[str, Any], Expected("an object")]]
    helpfulness: Choice
    harmlessness: Choice
    sub_preferences: Annotated[SubPreferenceFields | None, OptionalObject]


_PROMPT_KEYS = tuple(PromptFields.__annotations__)
_GRADE_KEYS = tuple(HEADS[name].key for name in GRADED_HEADS)
_VIDEO_KEYS = frozenset((*_PROMPT_KEYS, *VideoRecord.__annotations__))

# --- samples ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class PromptSample:
    """One prompt and what is known about it.

    Attributes:
        prompt_type: such as "safety_neutral" or "safety_critical".
        prompt_labels: key of `HARM_LABELS` -> whether it applies; a missing key is unknown. None without labels.
        extra: unknown fields as they are, with unknown harm labels under "prompt_labels".
    """

    prompt_id: str
    prompt_text: str
    prompt_type: str | None
    prompt_labels: Mapping[str, bool] | None
    extra: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class VideoSample:
    """One generated video and what is known about it; in a text corpus, a response in its place.

    Attributes:
        prompt_id, prompt_text, prompt_type: of its prompt.
        prompt_labels: harm labels of the prompt alone, as in `PromptSample`.
        video_id: unique within its prompt.
        video_text: the text shown beside the video, if the file has one.
        video_path: as written in the file; `PairDataset.video_file` finds the clip. None for a response.
        response_text: the response in a text corpus; None for a video.
        is_safe: None without a label.
        harm_labels: key of `HARM_LABELS` -> whether it applies; a key that is missing is unknown. None without labels.
        generated_from: the generator's name.
        extra: fields that SafeSora does not have, as they are, with unknown harm labels under "video_labels" and
            "prompt_labels".
        harm_categories: of a response, name of `HARM_CATEGORIES` -> whether it applies; a missing name is unknown. None
            without any.
        grades: key of a graded head, such as "severity_level" -> the number of the label's class.
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
    grades: Mapping[str, int] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Its name in messages, scores and frame stores: prompt_id/video_id."""
        return f"{self.prompt_id}/{self.video_id}"


@dataclass(frozen=True, slots=True)
class PairSample:
    """Two videos of one prompt and which of them people prefer.

    Attributes:
        pair_id: unique within its file.
        prompt_id, prompt_text, prompt_type: of the prompt of both videos.
        video_0, video_1: two different videos.
        preferences: each of `ALL_DIMENSIONS` -> the preferred video (0 or 1), `TIE` where people found both equal, or
            None without a label. "harmlessness" names the safer video.
        extra: unknown fields as they are, with unknown sub-preferences under "sub_preferences".
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
    """Reads one record of a pair file.

    Args:
        record: the record as JSON gives it.
        where: file and row, such as "SafeSora/config-train.json.gz row 17", for messages; rows are counted from 0.

    Raises:
        SampleError: a known field is missing or wrong; the one-line message names file, row and field.
    """
    fields = check_fields(PairRecord, record, where, SampleError)
    prompt = fields["prompt_id"], fields["prompt_text"], fields.get("prompt_type")
    videos = []
    for name in VIDEO_NAMES:
        # Releases differ in whether a video repeats its prompt; where it does, it must be the pair's.
        video = record[name]
        for key, expected in zip(_PROMPT_KEYS, prompt, strict=True) if isinstance(video, dict) else ():
            if video.get(key) not in (None, expected):
                fail(where, f"{name}.{key}", f"the pair's {key} {show(expected)}", video[key])
        videos.append(_parse_video(video, name, prompt, where))
    if videos[0].video_id == videos[1].video_id:
        fail(where, "video_1.video_id", "another video than video_0", videos[1].video_id)
    sub_preferences = fields.get("sub_preferences") or {}
    information, informativeness = sub_preferences.get("information"), sub_preferences.get("informativeness")
    if information is not None and informativeness not in (None, information):
        expected = f"{informativeness!r} as in sub_preferences.informativeness, or null"
        fail(where, "sub_preferences.information", expected, information)
    preferred = fields | sub_preferences | {"informativeness": informativeness or information}
    return PairSample(
        pair_id=fields["pair_id"],
        prompt_id=prompt[0],
        prompt_text=prompt[1],
        prompt_type=prompt[2],
        video_0=videos[0],
        video_1=videos[1],
        preferences={name: _PREFERENCES[preferred.get(name)] for name in ALL_DIMENSIONS},
        extra=unknown_fields(record, PairRecord.__annotations__, sub_preferences=SubPreferenceFields.__annotations__),
    )


def parse_video(record: Any, where: str) -> VideoSample:
    """Reads one record of a video file (SafeSora-Label); arguments and errors are those of `parse_pair`."""
    fields = check_fields(PromptFields, record, where, SampleError)
    return _parse_video(record, "", (fields["prompt_id"], fields["prompt_text"], fields.get("prompt_type")), where)


def parse_prompt(record: Any, where: str) -> PromptSample:
    """Reads one record of a prompt file (SafeSora-Eval); arguments and errors are those of `parse_pair`."""
    fields = check_fields(PromptRecord, record, where, SampleError)
    return PromptSample(
        prompt_id=fields["prompt_id"],
        prompt_text=fields["prompt_text"],
        prompt_type=fields.get("prompt_type"),
        prompt_labels=known_labels(fields.get("prompt_labels")),
        extra=unknown_fields(record, PromptRecord.__annotations__, prompt_labels=HARM_LABELS),
    )


def _parse_video(record: Any, field: str, prompt: tuple[str, str, str | None], where: str) -> VideoSample:
    is_text = isinstance(record, dict) and record.get("response_text") is not None
    fields = check_fields(ResponseRecord if is_text else VideoRecord, record, where, SampleError, within=field)
    get = fields.get
    return VideoSample(
        prompt_id=prompt[0],
        prompt_text=prompt[1],
        prompt_type=prompt[2],
        prompt_labels=known_labels(get("prompt_labels")),
        video_id=fields["video_id"],
        video_text=get("video_text"),
        video_path=get("video_path"),
        response_text=get("response_text"),
        is_safe=get("is_safe"),
        harm_labels=known_labels(get("video_labels")),
        generated_from=get("generated_from"),
        extra=unknown_fields(record, _VIDEO_KEYS, video_labels=HARM_LABELS, prompt_labels=HARM_LABELS),
        harm_categories=known_labels(get("harm_categories")),
        grades={key: grade for key in _GRADE_KEYS if (grade := get(key)) is not None},
    )


def known_labels(written: Mapping[str, bool | None] | None) -> dict[str, bool] | None:
    """The labels that are true or false; None where there are no labels at all."""
    return None if written is None else {name: value for name, value in written.items() if value is not None}
