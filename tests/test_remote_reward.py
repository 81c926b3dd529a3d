"""What trainers post to the remote-reward route, and what they make of the answer."""

import json
import math
from typing import Any

import numpy as np
import pytest
import torch
from small_models import one_line

from safe_rlhf_video.errors import CheckpointError, ConfigError, SampleError
from safe_rlhf_video.lagrangian import lagrangian_score
from safe_rlhf_video.scoring import TradeOff
from safe_rlhf_video.scoring.remote_reward import build_answer, parse_request

PROMPTS = ["a red circle", "a blue square"]
PATHS = ["a/1.mp4", "a/2.mp4"]
OPENRLHF = {"query": PATHS, "prompts": PROMPTS, "labels": ["", None]}
ALIGN_ANYTHING = {"prompts": PROMPTS, "responses": PATHS}


@pytest.mark.parametrize(
    ("body", "trainer"),
    [
        (OPENRLHF, "openrlhf"),
        ({"query": PATHS, "prompts": PROMPTS}, "openrlhf"),
        ({"query": [f"{p}{v}" for p, v in zip(PROMPTS, PATHS, strict=True)], "prompts": PROMPTS}, "openrlhf"),
        ({"query": [f"{p}\n {v}\n" for p, v in zip(PROMPTS, PATHS, strict=True)], "prompts": PROMPTS}, "openrlhf"),
        ({"query": [{"path": path} for path in PATHS], "prompts": PROMPTS}, "openrlhf"),
        (ALIGN_ANYTHING, "align-anything"),
        ({**ALIGN_ANYTHING, "golden_responses": ["x", "y"]}, "align-anything"),
    ],
)
def test_both_forms_name_the_same_videos(body: dict[str, Any], trainer: str) -> None:
    request = parse_request(json.loads(json.dumps(body)))
    assert request.trainer == trainer
    assert request.video_field == ("query" if trainer == "openrlhf" else "responses")
    assert list(request.prompts) == PROMPTS
    assert list(request.videos) == [{"path": path} for path in PATHS]


def test_encoded_videos_and_empty_batches() -> None:
    assert parse_request({"prompts": ["a"], "responses": [{"data": "AAAA"}]}).videos == ({"data": "AAAA"},)
    # A second server of OpenRLHF's gets what is left of a batch of one.
    assert parse_request({"query": [], "prompts": [], "labels": []}).videos == ()
    assert build_answer([], [], TradeOff(1.0, 0.0))["rewards"] == []


@pytest.mark.parametrize(
    ("body", "parts"),
    [
        ([], ["JSON object", "a list"]),
        (None, ["JSON object", "null"]),
        ({}, ["query", "responses", "neither"]),
        ({"prompts": PROMPTS}, ["neither"]),
        ({**OPENRLHF, "responses": PATHS}, ["both"]),
        ({"query": PATHS}, ["prompts: missing"]),
        ({"query": PATHS, "prompts": None}, ["prompts: expected a list", "null"]),
        ({"query": "a.mp4", "prompts": PROMPTS}, ["query: expected a list", "'a.mp4'"]),
        ({"query": PATHS[:1], "prompts": PROMPTS}, ["prompts: 2 for 1 of query"]),
        ({"responses": [*PATHS, "c"], "prompts": PROMPTS}, ["prompts: 2 for 3 of responses"]),
        ({"query": PATHS, "prompts": ["a", 3]}, ["prompts[1]", "a number"]),
        ({"query": PATHS, "prompts": ["a", " \n"]}, ["prompts[1]", "not empty"]),
        ({"query": [1, "a"], "prompts": PROMPTS}, ["query[0]", "a number"]),
        ({"query": ["a", True], "prompts": PROMPTS}, ["query[1]", "true or false"]),
        ({"query": ["a", " \n"], "prompts": PROMPTS}, ["query[1]: names no video"]),
        ({"query": [PROMPTS[0], "a"], "prompts": PROMPTS}, ["query[0]: names no video"]),
        ({**OPENRLHF, "metas\n": []}, ["'metas\\n': unknown field", "labels"]),
        ({**ALIGN_ANYTHING, "labels": []}, ["'labels': unknown field", "golden_responses"]),
    ],
)
def test_wrong_requests_are_one_line(body: object, parts: list[str]) -> None:
    with one_line(SampleError, *parts):
        parse_request(body)


def test_answer_is_the_lagrangian_with_both_heads_beside_it() -> None:
    rewards, costs = [1.5, -0.25, 3.0], [0.5, -2.0, 0.0]
    answer = json.loads(json.dumps(build_answer(rewards, costs, TradeOff(2.0, 0.25)), allow_nan=False))
    assert answer["rewards"] == [lagrangian_score(r, c, 2.0, 0.25) for r, c in zip(rewards, costs, strict=True)]
    assert answer["extra_logs"] == {"reward_head": rewards, "cost_head": costs, "unsafe": [1.0, 0.0, 0.0]}
    expected = torch.sigmoid(torch.tensor(answer["rewards"], dtype=torch.float64))
    np.testing.assert_allclose(answer["scores"], expected.numpy(), rtol=1e-12)
    # OpenRLHF writes extra_logs over its own "reward" and "score".
    assert not {"reward", "score"} & answer["extra_logs"].keys()
    # Every field becomes a tensor of one number a sample.
    for values in (answer["rewards"], answer["scores"], *answer["extra_logs"].values()):
        assert torch.tensor(values).shape == (3,)


def test_no_answer_holds_what_is_not_a_number() -> None:
    for bad in (math.nan, math.inf):
        with one_line(CheckpointError, "not finite"):
            build_answer([1.0, bad], [0.0, 0.0], TradeOff(1.0, 0.0))
        with one_line(CheckpointError, "not finite"):
            build_answer([1.0], [-bad], TradeOff(1.0, 0.0))
    with one_line(ConfigError, "overflow"):
        build_answer([1.0], [1e10], TradeOff(1e300, 0.0))
    with one_line(ConfigError, "lagrange_multiplier"):
        build_answer([1.0], [1.0], TradeOff(-1.0, 0.0))
    assert build_answer([1e6, -1e6], [0.0, 0.0], TradeOff(0.0, 0.0))["scores"] == [1.0, 0.0]
