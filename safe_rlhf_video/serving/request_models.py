"""The requests of the scoring routes as pydantic models: a wrong field is refused in one line that names it.

Types are not converted. The validation context is the server's settings, whose limits hold.
"""

from __future__ import annotations

from typing import Annotated, Any, NamedTuple, Self

from fastapi import HTTPException
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ModelWrapValidatorHandler,
    ValidationError,
    ValidationInfo,
    model_validator,
)
from starlette.datastructures import UploadFile

from safe_rlhf_video.contracts import STRICT, describe, show
from safe_rlhf_video.lagrangian import MAX_COST_LIMIT, MAX_LAGRANGE_MULTIPLIER
from safe_rlhf_video.serving.settings import ServerSettings

NUMBERS = ("lagrange_multiplier", "cost_limit")

MAX_MESSAGE = 400  # characters


def _limits(info: ValidationInfo) -> ServerSettings:
    assert isinstance(info.context, ServerSettings)
    return info.context


def _check_prompt(prompt: str, info: ValidationInfo) -> str:
    limit = _limits(info).max_prompt_chars
    if len(prompt) > limit:
        raise ValueError(f"has {len(prompt)} characters, at most {limit} are read; shorten it")
    if not prompt.strip():
        raise ValueError("expected a text that is not blank")
    prompt.encode()  # a lone surrogate raises UnicodeEncodeError, which is a ValueError
    return prompt


def _check_count(videos: object, info: ValidationInfo) -> object:
    limit = _limits(info).max_videos
    if isinstance(videos, list) and len(videos) > limit:
        raise ValueError(f"has {len(videos)}, at most {limit} are taken; send fewer")
    return videos


def _check_not_empty(text: str) -> str:
    if not text:
        raise ValueError("expected a string that is not empty")
    return text


def _check_base64(text: str) -> str:
    if not text.isascii():  # decoding says the rest; this text takes up to four times its size
        raise ValueError("is not base64; encode the whole file")
    return _check_not_empty(text)


# Not by min_length, which would refuse a lone surrogate: to clients, a path with one is a path without a file.
Text = Annotated[str, AfterValidator(_check_not_empty)]
Base64 = Annotated[str, AfterValidator(_check_base64)]


class _PromptedPath(NamedTuple):
    """A path after a prompt, or one that begins like it: "110.mp4" is "10.mp4" after the prompt "1", or itself."""

    rest: str
    whole: str


class RequestClip(BaseModel):
    """A clip: a path under the server's video root, or the encoded file itself."""

    model_config = STRICT | ConfigDict(
        frozen=True, json_schema_extra={"oneOf": [{"required": ["path"]}, {"required": ["data"]}]}
    )

    path: Text = Field(default_factory=str, examples=["clips/0.mp4"])
    data: Base64 = Field(default_factory=str, description="Base64 of the file.", json_schema_extra={"format": "byte"})
    _part: UploadFile | None = None
    _whole_path: str | None = None

    @property
    def part(self) -> UploadFile | None:
        """The file part of a multipart body, which has neither path nor data."""
        return self._part

    @property
    def whole_path(self) -> str | None:
        """What a trainer sent, where that begins with the prompt of the clip: `path` is what follows the prompt."""
        return self._whole_path

    @model_validator(mode="wrap")
    @classmethod
    def _take_one(cls, value: Any, check: ModelWrapValidatorHandler[Self]) -> Self:
        if isinstance(value, UploadFile):
            clip = cls.model_construct()
            clip._part = value
            return clip
        if isinstance(value, _PromptedPath):
            clip = check({"path": value.rest})
            clip._whole_path = value.whole
            return clip
        if not isinstance(value, dict) or value.keys() not in ({"path"}, {"data"}):
            raise ValueError(
                'expected a file part, or in JSON {"path": "under/the/video/root.mp4"} or '
                '{"data": "<base64 of the file>"}'
            )
        return check(value)


def _match_prompts(videos: object, info: ValidationInfo) -> object:
    prompts = info.data.get("prompts")
    if isinstance(videos, list) and prompts is not None and len(videos) != len(prompts):
        raise ValueError(f"has {len(videos)} videos for {len(prompts)} prompts; give each its prompt")
    return videos


def _name_paths(videos: object) -> object:
    """Reads the videos of a trainer, which may be plain paths."""
    if not isinstance(videos, list):  # has an error of its own
        return videos
    return [{"path": video.strip()} if isinstance(video, str) else video for video in videos]


def _part_prompts(videos: object, info: ValidationInfo) -> object:
    """Reads the videos of OpenRLHF, which puts the prompt before each of them."""
    prompts = info.data.get("prompts")
    if not isinstance(videos, list) or prompts is None:
        return videos
    return [
        _PromptedPath(video[len(prompt) :].strip(), video.strip())
        if isinstance(video, str) and video.startswith(prompt)
        else video
        for video, prompt in zip(videos, prompts, strict=True)
    ]


Prompt = Annotated[str, AfterValidator(_check_prompt), Field(description="What the clips were generated for.")]
Clips = Annotated[list[RequestClip], Field(min_length=1), BeforeValidator(_check_count)]
Multiplier = Annotated[
    Annotated[float, Field(ge=0, le=MAX_LAGRANGE_MULTIPLIER)] | None,
    Field(description="Lambda, the price of a unit of cost in units of reward; GET /model returns the default."),
]
CostLimit = Annotated[
    Annotated[float, Field(ge=-MAX_COST_LIMIT, le=MAX_COST_LIMIT)] | None,
    Field(description="d, the cost that is allowed; GET /model returns the default."),
]
# Not kept: it may be as large as the body.
Unused = Annotated[Any, AfterValidator(lambda _: None)]
# Trainers with more servers than samples send empty lists.
Prompts = Annotated[list[Prompt], BeforeValidator(_check_count)]
# Validators run from the last to the first.
Responses = Annotated[
    list[RequestClip], BeforeValidator(_name_paths), BeforeValidator(_match_prompts), BeforeValidator(_check_count)
]
Query = Annotated[
    list[RequestClip],
    BeforeValidator(_name_paths),
    BeforeValidator(_part_prompts),
    BeforeValidator(_match_prompts),
    BeforeValidator(_check_count),
]


class ScoringRequest(BaseModel):
    """Prompts, and clips for them."""

    model_config = STRICT | ConfigDict(frozen=True)

    @classmethod
    def read(cls, fields: dict[str, Any], settings: ServerSettings) -> Self:
        """Checks the fields of a body.

        Args:
            fields: values from JSON, or from a multipart body with an `UploadFile` for each file part.

        Raises:
            HTTPException: a field is unknown, missing, or of a wrong type, length or range.
        """
        # Before pydantic, which would describe every unknown field, and there may be a million.
        for name in fields:
            if name not in cls.model_fields:
                raise HTTPException(400, f"{show(name)}: unknown field, expected {', '.join(cls.model_fields)}")
        try:
            return cls.model_validate(fields, context=settings)
        except ValidationError as wrong:
            message = describe(wrong, "body")
            if len(message) > MAX_MESSAGE:
                message = message[:MAX_MESSAGE] + "..."
            raise HTTPException(400, f"{message}; GET /docs describes the fields") from wrong

    @property
    def clips(self) -> dict[str, RequestClip]:
        """The clips by the names that messages use for them, such as "video" and "videos[2]"."""
        found: dict[str, RequestClip] = {}
        for name, value in self:
            for place, clip in enumerate(value if isinstance(value, list) else [value]):
                if isinstance(clip, RequestClip):
                    found[f"{name}[{place}]" if isinstance(value, list) else name] = clip
        return found


class ClipRequest(ScoringRequest):
    """One clip to score for its prompt."""

    prompt: Prompt
    video: RequestClip


class PairRequest(ScoringRequest):
    """Two clips to choose between."""

    prompt: Prompt
    v1: RequestClip
    v2: RequestClip
    lagrange_multiplier: Multiplier = None
    cost_limit: CostLimit = None


class RankRequest(ScoringRequest):
    """Clips to put in order."""

    prompt: Prompt
    videos: Clips
    lagrange_multiplier: Multiplier = None
    cost_limit: CostLimit = None


class OpenRLHFRequest(ScoringRequest):
    """What OpenRLHF posts (openrlhf/utils/remote_rm_utils.py); its labels are for rewards by rule, and not used."""

    prompts: Prompts
    query: Query
    labels: Unused = None


class AlignAnythingRequest(ScoringRequest):
    """What align-anything posts (align_anything/models/remote_rm); its golden responses are not used."""

    prompts: Prompts
    responses: Responses
    golden_responses: Unused = None


def read_trainer_request(fields: dict[str, Any], settings: ServerSettings) -> OpenRLHFRequest | AlignAnythingRequest:
    """As `ScoringRequest.read`, for either trainer's form: the field of its videos says whose it is."""
    if ("query" in fields) == ("responses" in fields):
        found = "both" if "query" in fields else "neither"
        raise HTTPException(
            400,
            f"expected the field query (OpenRLHF) or responses (align-anything), found {found}; post videos as one of "
            "them, with prompts",
        )
    kind = OpenRLHFRequest if "query" in fields else AlignAnythingRequest
    return kind.read(fields, settings)
