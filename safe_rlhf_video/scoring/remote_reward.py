"""The remote-reward route: what OpenRLHF and align-anything post to a reward model, and the answer that they read.

    parse_request(body) -> RemoteRewardRequest      prompts, and videos as {"path": ...} or {"data": ...}
    build_answer(rewards, costs, trade_off) -> dict

Both are pure. The route resolves `videos` as it does those of its other routes, scores them and hands on the scores.

Which trainer it is shows in the fields:

| trainer | posts | reads |
|---|---|---|
| OpenRLHF | `query`, `prompts`, `labels` | `rewards`; newer versions `scores` and `extra_logs` too |
| align-anything | `prompts`, `responses` (`golden_responses`) | `rewards` |

Sources: OpenRLHF/OpenRLHF, openrlhf/utils/remote_rm_utils.py and openrlhf/trainer/ppo_utils/experience_maker.py;
PKU-Alignment/align-anything, align_anything/models/remote_rm/remote_rm_client.py and reward_server.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from safe_rlhf_video.errors import CheckpointError, ConfigError, SampleError
from safe_rlhf_video.scoring import TradeOff
from safe_rlhf_video.scoring.decisions import sigmoid

Trainer = Literal["openrlhf", "align-anything"]

# What a trainer sends besides prompts and videos is meant for rewards by rule; a learned reward has no use for it.
_VIDEO_FIELD: Mapping[Trainer, str] = {"openrlhf": "query", "align-anything": "responses"}
_IGNORED_FIELD: Mapping[Trainer, str] = {"openrlhf": "labels", "align-anything": "golden_responses"}


@dataclass(frozen=True)
class RemoteRewardRequest:
    """Videos to score, each for its prompt.

    Attributes:
        trainer: whose form the request has.
        prompts: (N,), N >= 0; OpenRLHF sends empty batches where it has more servers than samples.
        videos: (N,), each {"path": ...} or {"data": ...} as in the other routes; what is in them is not checked here.
        video_field: what the request calls them, for messages: "query" or "responses".
    """

    trainer: Trainer
    prompts: tuple[str, ...]
    videos: tuple[Mapping[str, Any], ...]
    video_field: str


def parse_request(body: object) -> RemoteRewardRequest:
    """Read the JSON body of a remote-reward request.

    A video is named by a path, or given as an object {"path": ...} or {"data": ...}. OpenRLHF puts the prompt before
    what was generated: a `query` that begins with its prompt is read without it. White space around a path is dropped.

    Raises:
        SampleError: it is in neither form, or a field is missing, unknown or of a wrong type or length.
    """
    if not isinstance(body, dict):
        raise SampleError(f"expected a JSON object with the fields query and prompts, got {_kind(body)}")
    trainer = _recognise(body)
    video_field = _VIDEO_FIELD[trainer]
    if unknown := sorted(str(name) for name in body.keys() - {"prompts", video_field, _IGNORED_FIELD[trainer]}):
        raise SampleError(
            f"{unknown[0][:60]!r}: unknown field; beside {video_field} expected prompts, and {_IGNORED_FIELD[trainer]} "
            "at most"
        )
    if "prompts" not in body:
        raise SampleError(f"prompts: missing; a video is scored for its prompt, give one for each of {video_field}")
    prompts, references = _read_list(body, "prompts"), _read_list(body, video_field)
    if len(prompts) != len(references):
        raise SampleError(f"prompts: {len(prompts)} for {len(references)} of {video_field}; give each its prompt")
    for place, prompt in enumerate(prompts):
        if not isinstance(prompt, str) or not prompt.strip():
            raise SampleError(f"prompts[{place}]: expected a text that is not empty, got {_kind(prompt)}")
    videos = tuple(
        _read_video(reference, prompt, f"{video_field}[{place}]")
        for place, (reference, prompt) in enumerate(zip(references, prompts, strict=True))
    )
    return RemoteRewardRequest(trainer, tuple(prompts), videos, video_field)


def build_answer(rewards: Sequence[float], costs: Sequence[float], trade_off: TradeOff) -> dict[str, Any]:
    """What both trainers read, reward and cost apart beside it.

    Args:
        rewards, costs: (N,) scores of the two heads, in the order of the request.
        trade_off: what decides.

    Returns:
        `rewards`, what trains: the Lagrangian scores. `scores`, its logistic function: OpenRLHF filters
        prompts by scores between 0 and 1. `extra_logs`, what OpenRLHF logs beside them: `reward_head`, `cost_head` and
        `unsafe`, 1 where the cost is above 0. (A log named reward or score would take the place of OpenRLHF's own.)

    Raises:
        ConfigError: lambda or d is out of range, or so large that a score overflows.
        CheckpointError: a score is not finite.
    """
    reward, cost = np.asarray(rewards, dtype=np.float64), np.asarray(costs, dtype=np.float64)
    if not (np.isfinite(reward).all() and np.isfinite(cost).all()):
        raise CheckpointError("a reward or cost is not finite: the model diverged; give another one")
    with np.errstate(over="ignore", invalid="ignore"):
        combined = trade_off.score(reward, cost)
    if not np.isfinite(combined).all():
        raise ConfigError(
            f"lagrange_multiplier {trade_off.lagrange_multiplier:g} and cost_limit {trade_off.cost_limit:g} make a "
            "score overflow; give smaller ones"
        )
    return {
        "rewards": combined.tolist(),
        "scores": [sigmoid(value) for value in combined.tolist()],
        "extra_logs": {
            "reward_head": reward.tolist(),
            "cost_head": cost.tolist(),
            "unsafe": (cost > 0).astype(np.float64).tolist(),
        },
    }


def _recognise(body: Mapping[str, Any]) -> Trainer:
    found = [trainer for trainer, field in _VIDEO_FIELD.items() if field in body]
    if len(found) != 1:
        what = "both" if found else "neither"
        raise SampleError(
            f"expected the field query (OpenRLHF) or responses (align-anything), found {what}; "
            "post videos as one of them, with prompts"
        )
    return found[0]


def _read_list(body: Mapping[str, Any], field: str) -> list[Any]:
    value = body[field]
    if not isinstance(value, list):
        raise SampleError(f"{field}: expected a list, got {_kind(value)}")
    return value


def _read_video(reference: object, prompt: str, place: str) -> Mapping[str, Any]:
    if isinstance(reference, dict):
        return reference
    if not isinstance(reference, str):
        raise SampleError(f"{place}: expected a video's path, or an object with path or data, got {_kind(reference)}")
    path = reference.removeprefix(prompt).strip()
    if not path:
        raise SampleError(f"{place}: names no video; give its path under the server's video root")
    return {"path": path}


def _kind(value: object) -> str:
    """A wrong value in words that cannot fill a line."""
    if isinstance(value, str):
        return repr(value[:40])
    names = {"NoneType": "null", "dict": "an object", "list": "a list", "bool": "true or false"}
    return names.get(type(value).__name__, "a number")
