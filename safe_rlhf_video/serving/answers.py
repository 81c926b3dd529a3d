"""What each route makes of the fields of its request: a plain dictionary, which becomes JSON."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from safe_rlhf_video.errors import SampleError
from safe_rlhf_video.scoring import TradeOff, judge_pair, judge_ranking, remote_reward
from safe_rlhf_video.serving.clip_references import Uploads
from safe_rlhf_video.serving.request_fields import (
    NUMBERS,
    ClipRequest,
    RequestError,
    parse_request,
    read_prompt,
    read_video,
)
from safe_rlhf_video.serving.service import Service

# The fields of each route's request.
CLIP_FIELDS = ("prompt", "video")
PAIR_FIELDS = ("prompt", "v1", "v2", *NUMBERS)
RANK_FIELDS = ("prompt", "videos", *NUMBERS)


async def score(service: Service, values: Mapping[str, Any], uploads: Uploads) -> dict[str, Any]:
    """The scores of one clip for its prompt, by head."""
    scores = await _score(service, parse_request(values, CLIP_FIELDS, service.settings), uploads)
    return {"scores": _row(scores, 0)}


async def score_pair(service: Service, values: Mapping[str, Any], uploads: Uploads) -> dict[str, Any]:
    """The choice between two clips for one prompt, and its reason."""
    scores, trade_off = await _score_for_choice(service, values, PAIR_FIELDS, uploads)
    pairs = {head: (float(found[0]), float(found[1])) for head, found in scores.items()}
    return judge_pair(pairs, trade_off, service.scorer.calibration.heads, service.facts).to_dict()


async def rank(service: Service, values: Mapping[str, Any], uploads: Uploads) -> dict[str, Any]:
    """Any number of clips for one prompt, best first, and where harm labels were trained, the harms of each."""
    scores, trade_off = await _score_for_choice(service, values, RANK_FIELDS, uploads)
    table = {head: found.tolist() for head, found in scores.items()}
    ranking = judge_ranking(table, trade_off, service.scorer.calibration.heads, service.facts)
    harms = None
    if service.scorer.can_moderate:
        harms = [service.scorer.judge_harms(_row(scores, place)).to_dict() for place in range(len(ranking.order))]
    return {**ranking.to_dict(), "harms": harms}


async def moderate(service: Service, values: Mapping[str, Any], uploads: Uploads) -> dict[str, Any]:
    """Which harms one clip shows."""
    service.require_moderation()
    scores = await _score(service, parse_request(values, CLIP_FIELDS, service.settings), uploads)
    return service.scorer.judge_harms(_row(scores, 0)).to_dict()


async def reward(service: Service, values: Mapping[str, Any], uploads: Uploads) -> dict[str, Any]:
    """Rewards of many clips, each for its prompt, in the forms of OpenRLHF and align-anything."""
    service.require_both_heads()
    settings = service.settings
    try:
        asked = remote_reward.parse_request(values)
    except SampleError as error:
        raise RequestError(400, str(error)) from error
    if len(asked.videos) > settings.max_videos:
        raise RequestError(
            400, f"prompts: has {len(asked.videos)}, at most {settings.max_videos} are taken; send fewer"
        )
    prompts = [
        read_prompt({field: prompt}, field, settings.max_prompt_chars)
        for field, prompt in ((f"prompts[{place}]", prompt) for place, prompt in enumerate(asked.prompts))
    ]
    videos = [read_video(video, f"{asked.video_field}[{place}]") for place, video in enumerate(asked.videos)]
    paths = await service.find(videos, uploads)
    scores = await service.score(prompts, paths, [video.field for video in videos])
    rewards, costs = scores["reward"].tolist(), scores["cost"].tolist()
    return remote_reward.build_answer(rewards, costs, service.scorer.resolve_trade_off())


async def _score_for_choice(
    service: Service, values: Mapping[str, Any], fields: tuple[str, ...], uploads: Uploads
) -> tuple[dict[str, np.ndarray], TradeOff]:
    service.require_both_heads()
    request = parse_request(values, fields, service.settings)
    # A wrong one is said before any clip is decoded.
    trade_off = service.scorer.resolve_trade_off(request.lagrange_multiplier, request.cost_limit)
    return await _score(service, request, uploads), trade_off


async def _score(service: Service, request: ClipRequest, uploads: Uploads) -> dict[str, np.ndarray]:
    paths = await service.find(request.videos, uploads)
    return await service.score([request.prompt] * len(paths), paths, [video.field for video in request.videos])


def _row(scores: Mapping[str, np.ndarray], place: int) -> dict[str, float]:
    return {head: float(values[place]) for head, values in scores.items()}
