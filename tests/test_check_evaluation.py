"""The bounds that an evaluation on a synthetic world is held to, and the standard errors of its controls."""

import json
from pathlib import Path

import numpy as np
import pytest
from conftest import launch

from safe_rlhf_video.calibration.store import HeadCalibration
from safe_rlhf_video.data.labelled_pairs import select_labelled
from safe_rlhf_video.data.records import ALL_DIMENSIONS, SUB_DIMENSIONS, PairSample, parse_pair
from safe_rlhf_video.evaluation.evaluate import evaluate
from safe_rlhf_video.evaluation.results import Evaluation, write_evaluation
from safe_rlhf_video.worlds.video_world import plan_split

Scores = dict[str, dict[str, float]]
CONTROLS = ("shuffled_prompt", "reversed_frames", "single_frame")


@pytest.fixture(scope="module")
def judged() -> tuple[list[PairSample], dict[str, dict[str, float]], dict[str, Scores], Evaluation]:
    """5,000 test comparisons, their truth, controls that are partly right, and what a model that knows it all gets."""
    pairs: dict[str, list[PairSample]] = {"train": [], "test": []}
    truth: dict[str, dict[str, float]] = {}
    for split, number in (("train", 300), ("test", 5000)):
        for records, _, true in plan_split(split, number, seed=2):
            pairs[split] += [parse_pair(record, "planned") for record in records]
            truth |= {name: {**values, "harmlessness": -values["cost"]} for name, values in true.items()}
    rng = np.random.default_rng(0)
    names = {video.name: video.video_id for pair in pairs["test"] for video in (pair.video_0, pair.video_1)}

    def scores(noise: float) -> Scores:
        def one(video_id: str) -> dict[str, float]:
            values = truth[video_id]
            heads = {"reward": values["helpfulness"], **{name: values[name] for name in ("cost", *SUB_DIMENSIONS)}}
            return {head: value + noise * rng.normal() for head, value in heads.items()}

        return {name: one(video_id) for name, video_id in names.items()}

    exact = HeadCalibration(1.0, 1.0, 0.1, None, 1000, 300, 0.5, 0.5, None, None)
    changed = {name: scores(3.0) for name in CONTROLS}
    heads = ("reward", "cost", *SUB_DIMENSIONS)
    result = evaluate(
        pairs["test"],
        scores(0.0),
        train_pairs=pairs["train"],
        truth=truth,
        calibrations=dict.fromkeys(heads, exact),
        changed_scores=changed,
    )
    return pairs["test"], truth, changed, result


def test_standard_errors_are_those_of_drawing_the_labels(
    judged: tuple[list[PairSample], dict[str, dict[str, float]], dict[str, Scores], Evaluation],
) -> None:
    pairs, truth, changed, result = judged
    for dimension, head, direction in (("helpfulness", "reward", 1), ("harmlessness", "cost", -1)):
        labelled = select_labelled(pairs, dimension, truth)
        assert labelled.true_margin is not None
        scores = changed["single_frame"]
        margin = [direction * (scores[p.video_0.name][head] - scores[p.video_1.name][head]) for p in labelled.pairs]
        # Given the truth, every label is a coin of its own: the variance of the mean is known.
        chance = 1.0 / (1.0 + np.exp(-np.sign(margin) * labelled.true_margin))
        by_hand = np.sqrt(np.sum(chance * (1.0 - chance))) / len(margin)
        assert result.controls_standard_error["single_frame"][dimension] == pytest.approx(by_hand, rel=0.06)
        assert result.controls_standard_error["prompt_only"][dimension] == 0.0
    assert evaluate(pairs[:40], changed["single_frame"]).controls_standard_error["prompt_only"] == dict.fromkeys(
        ALL_DIMENSIONS
    )


def test_evaluations_are_held_to_their_bounds(
    judged: tuple[list[PairSample], dict[str, dict[str, float]], dict[str, Scores], Evaluation], tmp_path: Path
) -> None:
    path = tmp_path / "evaluation.json"
    write_evaluation(path, judged[3])
    done = launch("benchmarks/check_evaluation.py", path)
    assert all(line.startswith("ok ") for line in done.stdout.splitlines())
    bad = json.loads(path.read_text())
    bad["aesthetics"]["fraction_of_ceiling"] = 0.92
    bad["helpfulness"]["calibration"]["mean_absolute_error"] = 0.051
    bad["harmlessness"]["calibration"]["is_calibrated"] = False
    bad["controls"]["reversed_frames"]["correctness"] += 0.03
    bad["num_prompts_also_in_training"] = 1
    path.write_text(json.dumps(bad))
    done = launch("benchmarks/check_evaluation.py", path, check=False)
    assert done.returncode == 1
    assert sum(line.startswith("FAILED ") for line in done.stdout.splitlines()) == 5
    del bad["controls"]["single_frame"]
    path.write_text(json.dumps(bad))
    done = launch("benchmarks/check_evaluation.py", path, check=False)
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (1, "", 1)
