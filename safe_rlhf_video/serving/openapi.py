"""Describes requests and answers for OpenAPI, and renders the description as a page without scripts or network."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
from pydantic import BaseModel

from safe_rlhf_video.scoring.decisions import Ranking
from safe_rlhf_video.scoring.harms import Moderation
from safe_rlhf_video.serving.request_models import AlignAnythingRequest, OpenRLHFRequest, RequestClip, ScoringRequest

_FILE = {"type": "string", "format": "binary", "description": "The encoded file."}
_TEMPLATE = Path(__file__).parent / "page" / "docs.html.jinja"


class Error(BaseModel):
    """Every error."""

    error: str


class Scores(BaseModel):
    """Scores of one clip, by head."""

    scores: dict[str, float]


@dataclass(frozen=True)
class RankAnswer(Ranking):
    """A `Ranking`, and the harms of each clip; null where no harm label was trained."""

    harms: tuple[Moderation, ...] | None = None


ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"description": text, "model": Error}
    for status, text in (
        (400, "A field or a clip is wrong."),
        (401, "The key is missing or wrong."),
        (404, "The models for it are not loaded."),
        (408, "The body comes too slowly."),
        (413, "The body is too large."),
        (429, "A limit of all clients or of this one; Retry-After says when to try again."),
        (503, "Not answered in time, or the server is shutting down."),
    )
}


def clip_body(kind: type[ScoringRequest]) -> dict[str, Any]:
    """Describes a request as JSON and as multipart: FastAPI itself knows one kind of body a route."""
    clip = RequestClip.model_json_schema()
    return _body({"application/json": _describe(kind, clip), "multipart/form-data": _describe(kind, _FILE)})


def trainer_body() -> dict[str, Any]:
    """Describes what /remote_reward takes."""
    path = {"type": "string", "description": "A path under the video root."}
    clip = {"oneOf": [path, RequestClip.model_json_schema()]}
    return _body(
        {"application/json": {"oneOf": [_describe(kind, clip) for kind in (OpenRLHFRequest, AlignAnythingRequest)]}}
    )


def render_docs(schema: Mapping[str, Any]) -> str:
    """Renders an OpenAPI description as HTML."""
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters["pretty"] = functools.partial(json.dumps, indent=1)
    return environment.from_string(_TEMPLATE.read_text(encoding="utf-8")).render(schema)


def _describe(kind: type[ScoringRequest], clip: Mapping[str, Any]) -> Any:
    # `clip` takes the place of references, which lead nowhere from the description of a single operation.
    schema = kind.model_json_schema()
    del schema["$defs"]
    return json.loads(json.dumps(schema).replace('{"$ref": "#/$defs/RequestClip"}', json.dumps(clip)))


def _body(kinds: Mapping[str, Any]) -> dict[str, Any]:
    content = {kind: {"schema": schema} for kind, schema in kinds.items()}
    return {"requestBody": {"required": True, "content": content}}
