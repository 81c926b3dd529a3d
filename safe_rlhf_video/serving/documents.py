"""What OpenAPI says of the requests, and the page that shows it without a script and without a network."""

from __future__ import annotations

import html
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from safe_rlhf_video.scoring import Moderation, Ranking
from safe_rlhf_video.serving.request_fields import MAX_COST_LIMIT, MAX_LAGRANGE_MULTIPLIER

_PROMPT = {"type": "string", "description": "What the clips were generated for."}
_VIDEO = {
    "description": "A clip: a path under the server's video root, or the encoded file itself.",
    "oneOf": [
        {
            "type": "object",
            "properties": {"path": {"type": "string", "example": "clips/0.mp4"}},
            "required": ["path"],
            "additionalProperties": False,
        },
        {
            "type": "object",
            "properties": {"data": {"type": "string", "format": "byte", "description": "Base64 of the file."}},
            "required": ["data"],
            "additionalProperties": False,
        },
    ],
}
_FILE = {"type": "string", "format": "binary", "description": "The encoded file."}
_NUMBERS = {
    "lagrange_multiplier": {
        "type": "number",
        "minimum": 0,
        "maximum": MAX_LAGRANGE_MULTIPLIER,
        "description": "Lambda, the price of a unit of cost in units of reward; GET /model tells the default.",
    },
    "cost_limit": {
        "type": "number",
        "minimum": -MAX_COST_LIMIT,
        "maximum": MAX_COST_LIMIT,
        "description": "d, the cost that is allowed; GET /model tells the default.",
    },
}
_ERRORS = {
    400: "A field or a clip is wrong.",
    401: "The key is missing or wrong.",
    404: "The models for it are not loaded.",
    413: "The body is too large.",
    429: "Too many requests are in work; Retry-After tells when to try again.",
    503: "Not answered in time, or the server is shutting down.",
}


class Error(BaseModel):
    """Every error."""

    error: str


class Scores(BaseModel):
    """Scores of one clip, by head."""

    scores: dict[str, float]


@dataclass(frozen=True)
class RankAnswer(Ranking):
    """A `Ranking`, and what each clip shows of harm; null where no harm label was trained."""

    harms: tuple[Moderation, ...] | None = None


def clip_body(fields: tuple[str, ...]) -> dict[str, Any]:
    """What a route takes that has these fields, as JSON and as multipart."""
    kinds: dict[str, dict[str, Any]] = {}
    for kind, video in (("application/json", _VIDEO), ("multipart/form-data", _FILE)):
        known: dict[str, Any] = {
            "prompt": _PROMPT,
            "videos": {"type": "array", "minItems": 1, "items": video},
            **_NUMBERS,
        }
        kinds[kind] = _object({name: known.get(name, video) for name in fields}, set(fields) - _NUMBERS.keys())
    return _body(kinds)


def reward_body() -> dict[str, Any]:
    """What /remote_reward takes."""
    video = {"oneOf": [{"type": "string", "description": "A path under the video root."}, *_VIDEO["oneOf"]]}
    prompts, videos = ({"type": "array", "items": one} for one in ({"type": "string"}, video))
    forms = [
        _object({"query": videos, "prompts": prompts, "labels": {}}, {"query", "prompts"}),
        _object({"responses": videos, "prompts": prompts, "golden_responses": {}}, {"responses", "prompts"}),
    ]
    return _body({"application/json": {"oneOf": forms}})


def responses(answer: Any = None) -> dict[int | str, dict[str, Any]]:
    """The answers of a route: `answer`, a dataclass or model, and errors."""
    errors: dict[int | str, dict[str, Any]] = {
        status: {"description": text, "model": Error} for status, text in _ERRORS.items()
    }
    return errors if answer is None else {200: {"description": "The answer.", "model": answer}, **errors}


def render(schema: Mapping[str, Any]) -> str:
    """An OpenAPI description as a page."""
    parts = [
        "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>",
        f"<title>{html.escape(schema['info']['title'])}</title><style>",
        "body{font:16px/1.5 system-ui,sans-serif;max-width:52rem;margin:2rem auto;padding:0 1rem}",
        "code,pre{font-family:ui-monospace,monospace;font-size:.9em}pre{overflow:auto;background:#8881;padding:.6rem}",
        "table{border-collapse:collapse}td{border-top:1px solid #8886;padding:.2rem .8rem .2rem 0;vertical-align:top}",
        ":root{color-scheme:light dark}</style>",
        f"<h1>{html.escape(schema['info']['title'])}</h1><p>{html.escape(schema['info']['description'])} ",
        "The same for machines: <a href='openapi.json'>openapi.json</a>.</p>",
    ]
    for path, methods in schema["paths"].items():
        for method, route in methods.items():
            parts.append(f"<h2><code>{method.upper()} {html.escape(path)}</code></h2>")
            parts.append(f"<p>{html.escape(route.get('description') or route.get('summary', ''))}</p>")
            for kind, content in route.get("requestBody", {}).get("content", {}).items():
                shown = html.escape(json.dumps(content["schema"], indent=1))
                parts.append(f"<details><summary>Takes <code>{kind}</code></summary><pre>{shown}</pre></details>")
            answer = route["responses"].get("200", {}).get("content", {}).get("application/json", {}).get("schema", {})
            if "$ref" in answer:
                model = schema["components"]["schemas"][answer["$ref"].rpartition("/")[2]]
                shown = html.escape(json.dumps(model, indent=1))
                parts.append(f"<details><summary>Answers</summary><pre>{shown}</pre></details>")
            rows = "".join(
                f"<tr><td>{status}<td>{html.escape(one['description'])}" for status, one in route["responses"].items()
            )
            parts.append(f"<table>{rows}</table>")
    return "\n".join(parts)


def _object(properties: Mapping[str, Any], required: set[str]) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": dict(properties),
        "required": [name for name in properties if name in required],
        "additionalProperties": False,
    }


def _body(kinds: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    content = {kind: {"schema": schema} for kind, schema in kinds.items()}
    return {"requestBody": {"required": True, "content": content}}
