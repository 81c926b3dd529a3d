"""The requests of the scoring routes as pydantic models: a wrong field is refused in one line that names it.

Types are not converted. The validation context is the server's settings, whose limits hold.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Self

from fastapi import HTTPException
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ModelWrapValidatorHandler,
    TypeAdapter,
    ValidationError,
    ValidationInfo,
    model_validator,
)
from starlette.datastructures import UploadFile

from safe_rlhf_video.contracts import STRICT, describe, show
from safe_rlhf_video.errors import SampleError
from safe_rlhf_video.scoring import remote_reward
from safe_rlhf_video.serving.settings import ServerSettings

# Products of larger ones with a score are no longer exact enough to tell clips apart, and overflow at 1e308.
MAX_LAGRANGE_MULTIPLIER = 1e6
MAX_COST_LIMIT = 1e6
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
        raise ValueError(f"has {len(videos)} videos, at most {limit} are taken; send fewer")
    return videos


def _check_not_empty(text: str) -> str:
    if not text:
        raise ValueError("expected a string that is not empty")
    return text


# Not by min_length, which would refuse a lone surrogate: to clients, a path with one is a path without a file.
Text = Annotated[str, AfterValidator(_check_not_empty)]


class Clip(BaseModel):
    """A clip: a path under the server's video root, or the encoded file itself."""

    model_config = STRICT | ConfigDict(
        frozen=True, json_schema_extra={"oneOf": [{"required": ["path"]}, {"required": ["data"]}]}
    )

    path: Text = Field(default_factory=str, examples=["clips/0.mp4"])
    data: Text = Field(default_factory=str, description="Base64 of the file.", json_schema_extra={"format": "byte"})
    _part: UploadFile | None = None

    @property
    def part(self) -> UploadFile | None:
        """The file part of a multipart body, which has neither path nor data."""
        return self._part

    @model_validator(mode="wrap")
    @classmethod
    def _take_one(cls, value: Any, check: ModelWrapValidatorHandler[Self]) -> Self:
        if isinstance(value, UploadFile):
            clip = cls.model_construct()
            clip._part = value
            return clip
        if not isinstance(value, dict) or value.keys() not in ({"path"}, {"data"}):
            raise ValueError(
                'expected a file part, or in JSON {"path": "under/the/video/root.mp4"} or '
                '{"data": "<base64 of the file>"}'
            )
        return check(value)


Prompt = Annotated[str, AfterValidator(_check_prompt), Field(description="What the clips were generated for.")]
Clips = Annotated[list[Clip], Field(min_length=1), BeforeValidator(_check_count)]
Multiplier = Annotated[
    Annotated[float, Field(ge=0, le=MAX_LAGRANGE_MULTIPLIER)] | None,
    Field(description="Lambda, the price of a unit of cost in units of reward; GET /model returns the default."),
]
CostLimit = Annotated[
    Annotated[float, Field(ge=-MAX_COST_LIMIT, le=MAX_COST_LIMIT)] | None,
    Field(description="d, the cost that is allowed; GET /model returns the default."),
]


class ScoringRequest(BaseModel):
    """A prompt, and in the models below clips for it."""

    model_config = STRICT | ConfigDict(frozen=True)

    prompt: Prompt

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
            raise _refuse(wrong) from wrong

    @property
    def clips(self) -> dict[str, Clip]:
        """The clips by the names that messages use for them, such as "video" and "videos[2]"."""
        found: dict[str, Clip] = {}
        for name, value in self:
            if isinstance(value, Clip):
                found[name] = value
            elif isinstance(value, list):
                found |= {f"{name}[{place}]": clip for place, clip in enumerate(value)}
        return found


class ClipRequest(ScoringRequest):
    """One clip to score for its prompt."""

    video: Clip


class PairRequest(ScoringRequest):
    """Two clips to choose between."""

    v1: Clip
    v2: Clip
    lagrange_multiplier: Multiplier = None
    cost_limit: CostLimit = None


class RankRequest(ScoringRequest):
    """Clips to put in order."""

    videos: Clips
    lagrange_multiplier: Multiplier = None
    cost_limit: CostLimit = None


@dataclass(frozen=True)
class RemoteClips:
    """The clips of a trainer's request, each with its own prompt, in one order."""

    prompts: list[str]
    clips: dict[str, Clip]

    @classmethod
    def read(cls, fields: dict[str, Any], settings: ServerSettings) -> RemoteClips:
        """As `ScoringRequest.read`, for the forms of OpenRLHF and align-anything."""
        try:
            asked = remote_reward.parse_request(fields)
        except SampleError as error:
            raise HTTPException(400, str(error)) from error
        if len(asked.videos) > settings.max_videos:
            raise HTTPException(
                400, f"prompts: has {len(asked.videos)}, at most {settings.max_videos} are taken; send fewer"
            )
        named_prompts = {f"prompts[{place}]": prompt for place, prompt in enumerate(asked.prompts)}
        named_videos = {f"{asked.video_field}[{place}]": video for place, video in enumerate(asked.videos)}
        try:
            prompts = _PROMPTS.validate_python(named_prompts, context=settings)
            return cls(list(prompts.values()), _CLIPS.validate_python(named_videos))
        except ValidationError as wrong:
            raise _refuse(wrong) from wrong


_PROMPTS = TypeAdapter(dict[str, Prompt])
_CLIPS = TypeAdapter(dict[str, Clip])


def _refuse(wrong: ValidationError) -> HTTPException:
    message = describe(wrong, "body")
    if len(message) > MAX_MESSAGE:
        message = message[:MAX_MESSAGE] + "..."
    return HTTPException(400, f"{message}; GET /docs describes the fields")
