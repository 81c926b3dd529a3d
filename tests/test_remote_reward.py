"""What trainers post to the remote-reward route, and what they make of the answer."""

import json
import math
from typing import Any

import numpy as np
import pytest
import torch
from fastapi import HTTPException
from small_models import one_line

from safe_rlhf_video.errors import CheckpointError, ConfigError
from safe_rlhf_video.lagrangian import lagrangian_score
from safe_rlhf_video.scoring.decisions import TradeOff
from safe_rlhf_video.scoring.remote_reward import build_answer
from safe_rlhf_video.serving.request_models import read_trainer_request
from safe_rlhf_video.serving.settings import ServerSettings

SETTINGS = ServerSettings(model=("model",))
PROMPTS = ["a red circle", "a blue square"]
PATHS = ["a/1.mp4", "a/2.mp4"]
OPENRLHF = {"query": PATHS, "prompts": PROMPTS, "labels": ["", None]}
ALIGN_ANYTHING = {"prompts": PROMPTS, "responses": PATHS}


@pytest.mark.parametrize(
    ("body", "field"),
    [
        (OPENRLHF, "query"),
        ({"query": PATHS, "prompts": PROMPTS}, "query"),
        ({"query": [f"{p}{v}" for p, v in zip(PROMPTS, PATHS, strict=True)], "prompts": PROMPTS}, "query"),
        ({"query": [f"{p}\n {v}\n" for p, v in zip(PROMPTS, PATHS, strict=True)], "prompts": PROMPTS}, "query"),
        ({"query": [{"path": path} for path in PATHS], "prompts": PROMPTS}, "query"),
        (ALIGN_ANYTHING, "responses"),
        ({**ALIGN_ANYTHING, "golden_responses": ["x", "y"]}, "responses"),
    ],
)
def test_both_forms_name_the_same_videos(body: dict[str, Any], field: str) -> None:
    request = read_trainer_request(json.loads(json.dumps(body)), SETTINGS)
    assert request.prompts == PROMPTS
    assert {name: clip.path for name, clip in request.clips.items()} == {
        f"{field}[{place}]": path for place, path in enumerate(PATHS)
    }


def test_encoded_videos_and_empty_batches() -> None:
    encoded = read_trainer_request({"prompts": ["a"], "responses": [{"data": "AAAA"}]}, SETTINGS)
    assert encoded.clips["responses[0]"].data == "AAAA"
    # A second server of OpenRLHF's gets what is left of a batch of one.
    assert read_trainer_request({"query": [], "prompts": [], "labels": []}, SETTINGS).clips == {}
    assert build_answer({"reward": [], "cost": []}, TradeOff(1.0, 0.0))["rewards"] == []


@pytest.mark.parametrize(
    ("body", "parts"),
    [
        ({}, ["query", "responses", "neither"]),
        ({"prompts": PROMPTS}, ["neither"]),
        ({**OPENRLHF, "responses": PATHS}, ["both"]),
        ({"query": PATHS}, ["prompts: missing"]),
        ({"query": PATHS, "prompts": None}, ["prompts: expected a list", "None"]),
        ({"query": "a.mp4", "prompts": PROMPTS}, ["query: expected a list", "'a.mp4'"]),
        ({"query": PATHS[:1], "prompts": PROMPTS}, ["query: has 1 videos for 2 prompts"]),
        ({"responses": [*PATHS, "c"], "prompts": PROMPTS}, ["responses: has 3 videos for 2 prompts"]),
        ({"query": PATHS, "prompts": ["a", 3]}, ["prompts[1]", "a string", "3"]),
        ({"query": PATHS, "prompts": ["a", " \n"]}, ["prompts[1]", "not blank"]),
        ({"query": [1, "a"], "prompts": PROMPTS}, ["query[0]", "got 1"]),
        ({"query": ["a", True], "prompts": PROMPTS}, ["query[1]", "got True"]),
        ({"query": ["a", " \n"], "prompts": PROMPTS}, ["query[1].path: expected a string that is not empty"]),
        ({"query": [PROMPTS[0], "a"], "prompts": PROMPTS}, ["query[0].path: expected a string that is not empty"]),
        ({**OPENRLHF, "metas\n": []}, ["'metas\\n': unknown field", "labels"]),
        ({**ALIGN_ANYTHING, "labels": []}, ["'labels': unknown field", "golden_responses"]),
        # Not one description a video, of a million: it would keep all threads waiting.
        ({"query": [1] * 10**6, "prompts": None}, ["prompts: expected a list"]),
        ({"query": PATHS * 33, "prompts": PROMPTS * 33}, ["prompts: has 66, at most 64"]),
    ],
)
def test_wrong_requests_are_one_line(body: dict[str, Any], parts: list[str]) -> None:
    with pytest.raises(HTTPException) as caught:
        read_trainer_request(body, SETTINGS)
    assert caught.value.status_code == 400
    assert "\n" not in caught.value.detail
    assert len(caught.value.detail) < 500
    for part in parts:
        assert part in caught.value.detail


def test_answer_is_the_lagrangian_with_both_heads_beside_it() -> None:
    rewards, costs = [1.5, -0.25, 3.0], [0.5, -2.0, 0.0]
    answer = json.loads(
        json.dumps(build_answer({"reward": rewards, "cost": costs}, TradeOff(2.0, 0.25)), allow_nan=False)
    )
    assert answer["rewards"] == [lagrangian_score(r, c, 2.0, 0.25) for r, c in zip(rewards, costs, strict=True)]
    assert answer["extra_logs"] == {"reward_head": rewards, "cost_head": costs, "unsafe": [1.0, 0.0, 0.0]}
    expected = torch.sigmoid(torch.tensor(answer["rewards"], dtype=torch.float64))
    np.testing.assert_allclose(answer["scores"], expected.numpy(), rtol=1e-12)
    # OpenRLHF writes extra_logs over its own "reward" and "score".
    assert not {"reward", "score"} & answer["extra_logs"].keys()
    # Every field becomes a tensor of one number a sample.
    for values in (answer["rewards"], answer["scores"], *answer["extra_logs"].values()):
        assert torch.tensor(values).shape == (3,)


def test_the_answer_of_one_model_alone_says_so() -> None:
    reward = build_answer({"reward": [1.5, -0.25], "aesthetics": [9.0, 9.0]}, None)
    assert reward["rewards"] == [1.5, -0.25]
    assert reward["extra_logs"] == {"reward_head": [1.5, -0.25]}
    assert reward["decided_by"] == "reward alone, no cost model"
    cost = build_answer({"cost": [1.5, -0.25]}, None)
    assert cost["rewards"] == [-1.5, 0.25]
    assert cost["extra_logs"] == {"cost_head": [1.5, -0.25], "unsafe": [1.0, 0.0]}
    assert cost["decided_by"] == "cost alone, no reward model"


def test_no_answer_holds_what_is_not_a_number() -> None:
    for bad in (math.nan, math.inf):
        with one_line(CheckpointError, "not finite"):
            build_answer({"reward": [1.0, bad], "cost": [0.0, 0.0]}, TradeOff(1.0, 0.0))
        with one_line(CheckpointError, "not finite"):
            build_answer({"reward": [1.0], "cost": [-bad]}, TradeOff(1.0, 0.0))
        with one_line(CheckpointError, "not finite"):
            build_answer({"reward": [1.0, bad]}, None)
    with one_line(ConfigError, "at most 1e+06"):
        build_answer({"reward": [1.0], "cost": [1e10]}, TradeOff(1e300, 0.0))
    with one_line(ConfigError, "lagrange_multiplier"):
        build_answer({"reward": [1.0], "cost": [1.0]}, TradeOff(-1.0, 0.0))
    assert build_answer({"reward": [1e6, -1e6], "cost": [0.0, 0.0]}, TradeOff(0.0, 0.0))["scores"] == [1.0, 0.0]
