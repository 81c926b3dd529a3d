"""Harm labels: what records say, weights of classes, loss, thresholds, and a model trained on labelled videos."""

from __future__ import annotations

import gzip
import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Record, launch, read_records, read_rows, write_training_config
from small_models import build_score_model, noise_video, one_line, whole_weights, write_model

from safe_rlhf_video.cli import parse_config
from safe_rlhf_video.data.preferences import build_groups, harm_signs
from safe_rlhf_video.data.samples import HARM_LABELS, parse_video
from safe_rlhf_video.errors import CheckpointError, SampleError
from safe_rlhf_video.heads import HARM_HEADS
from safe_rlhf_video.losses import harm_label_loss
from safe_rlhf_video.models.checkpoint import save_model
from safe_rlhf_video.moderation import choose_threshold
from safe_rlhf_video.scoring import Scorer, judge_harms
from safe_rlhf_video.training.config import TrainConfig
from safe_rlhf_video.training.data import harm_weights, load_data, weigh_harms

NONE = dict.fromkeys(HARM_LABELS, False)


def video(labels: dict[str, bool] | None, is_safe: bool | None, number: int = 0) -> Any:
    record: Record = {
        **{"prompt_id": "p", "prompt_text": "a prompt", "video_id": f"v{number}", "video_path": "v.mp4"},
        **{"is_safe": is_safe, "video_labels": labels},
    }
    return parse_video(record, "here")


@pytest.mark.parametrize(
    ("records", "any_harm", "crime"),
    [
        ([(NONE, True)], -1, -1),
        ([(NONE, None)], -1, -1),
        ([(None, False)], 1, 0),
        ([({**NONE, "crime": True}, None)], 1, 1),
        ([({**NONE, "crime": True}, True)], 0, 1),  # safe, and yet a crime: nobody knows
        ([({"porn": False}, None)], 0, 0),
        ([(None, None)], 0, 0),
        ([(NONE, True), ({**NONE, "crime": True}, False)], 0, 0),
        ([(None, None), ({**NONE, "crime": True}, False)], 1, 1),
    ],
)
def test_what_records_say_of_a_video(records: list[tuple[Any, Any]], any_harm: int, crime: int) -> None:
    ((_, signs),) = harm_signs([], [video(*record) for record in records]).items()
    assert signs[0] == any_harm
    assert signs[HARM_HEADS.index("harm_crime")] == crime
    (group,), _ = build_groups([], [video(*record) for record in records])
    assert group.harm_targets.tolist() == [signs.tolist()]


def test_heads_are_the_labels_of_the_files() -> None:
    assert ("harm_any", *(f"harm_{name}" for name in HARM_LABELS)) == HARM_HEADS


def test_loss_is_the_weighted_likelihood_of_what_is_known() -> None:
    logits = torch.tensor([0.3, -1.2, 1e30, 2.0], dtype=torch.float64, requires_grad=True)
    losses = harm_label_loss(logits, torch.tensor([2.5, -0.5, 0.0, -1.0]))
    expected = [2.5 * math.log1p(math.exp(-0.3)), 0.5 * math.log1p(math.exp(-1.2)), 0.0, math.log1p(math.exp(2.0))]
    assert losses.tolist() == pytest.approx(expected)
    losses.sum().backward()
    assert logits.grad is not None
    assert logits.grad[2] == 0.0
    with pytest.raises(ValueError, match="shape"):
        harm_label_loss(logits, torch.ones(3))


def test_rare_classes_are_raised_and_the_mean_weight_is_one() -> None:
    videos = [video({**NONE, "crime": number < 2}, number >= 2, number) for number in range(10)]
    groups, _ = build_groups([], videos)
    column = HARM_HEADS.index("harm_crime")
    for power, ratio in ((0.0, 1.0), (0.5, 2.0), (1.0, 4.0)):
        (group,) = weigh_harms(groups, *harm_weights(groups, power))
        weights = group.harm_targets[:, column]
        assert (np.sign(weights) == [1, 1, *[-1] * 8]).all()
        assert abs(weights).mean() == pytest.approx(1.0)
        assert weights[0] / -weights[-1] == pytest.approx(ratio)
    assert sum(abs(weights[:2])) == pytest.approx(sum(abs(weights[2:])))  # at 1, both classes count alike


def test_thresholds_meet_their_targets_on_new_videos() -> None:
    """By simulation: a conformal threshold's rate, over many draws of what it is chosen on, is at most its target."""
    rng = np.random.default_rng(0)
    rates = []
    for _ in range(400):
        logits, applies = rng.normal(size=150), np.arange(150) < 30
        chosen = choose_threshold(logits + applies, applies, false_positive_rate=0.1)
        assert chosen is not None
        rates.append(1.0 - 0.5 * (1.0 + math.erf(chosen.logit / math.sqrt(2.0))))
        assert chosen.false_positive_rate <= 0.1
    assert 0.085 < np.mean(rates) <= 0.1
    for recall in (0.5, 0.9, 0.97):
        chosen = choose_threshold(logits, applies, recall=recall)
        assert chosen is not None
        assert chosen.recall >= recall
        higher = np.sort(logits[applies & (logits > chosen.logit)])[0]
        assert np.mean(logits[applies] > higher) < recall
    assert choose_threshold(logits[:40], applies[:40], false_positive_rate=0.05) is None  # ten cannot say 5%
    assert choose_threshold(logits, np.zeros(150, bool), recall=0.9) is None


@pytest.fixture
def labelled(edited_world: Callable[[Callable[[list[Record]], Any]], Path]) -> Path:
    """The tiny world's videos as SafeSora-Label has them: a record a video, no comparison."""
    folder = edited_world(lambda records: None)
    records = read_records(folder)
    rows = {record[side]["video_id"]: record[side] for record in records for side in ("video_0", "video_1")}
    (folder / "config-train.json.gz").write_bytes(gzip.compress(json.dumps(list(rows.values())).encode()))
    return folder


def test_a_model_is_trained_on_labelled_videos(labelled: Path, tmp_path: Path) -> None:
    path = write_training_config(
        tmp_path / "run.yaml", labelled, heads=["harm_any"], data={"validation_fraction": 0.0},
        optimization={"epochs": 12, "learning_rate": 5e-3, "head_learning_rate": 1e-2},
        checkpoint={"every_steps": 1000}, tracking={"log_every": 8, "wandb": "disabled"},
    )  # fmt: skip
    launch("scripts/train_moderation.py", "--config", path)
    rows = read_rows(tmp_path / "run")
    assert rows[-1]["train/harm_loss/harm_any"] < 0.3 < rows[0]["train/harm_loss/harm_any"]
    record = json.loads((tmp_path / "run" / "model" / "model.json").read_text())
    assert record["heads_of_adapter"] == {"moderation": ["harm_any"]}


def test_moderation_takes_the_weights_of_training_out(tmp_path: Path) -> None:
    heads = ("harm_any", "harm_violence", "harm_crime")
    model, record = build_score_model({"moderation": heads})
    record = replace(record, training={"harm_log_odds": {"harm_any": 0.4, "harm_violence": 1.5, "harm_crime": -0.2}})
    save_model(model, record, tmp_path / "model", whole_weights(model))
    clip = noise_video(4, 32, 32, 0)
    with Scorer.from_pretrained(tmp_path / "model", device="cpu") as scorer:
        logits, judged = scorer.score("a prompt", clip), scorer.moderate("a prompt", clip)
    for head in heads:
        shift = record.training["harm_log_odds"][head]  # type: ignore[index]
        expected = 1.0 / (1.0 + math.exp(shift - logits[head]))
        assert judged.probabilities[head.removeprefix("harm_")] == pytest.approx(expected)
    rather = [name for name, p in judged.probabilities.items() if p > 0.5]
    assert sorted(judged.flags) == sorted(rather)
    scores = {"harm_any": 2.0, "harm_crime": 1.0, "harm_violence": 1.4}
    judged = judge_harms(scores, [record])
    assert judged.flags == ("any", "crime")
    assert judged.names == ("S4 Crime",)
    json.dumps(judged.to_dict())
    reward = Scorer.from_pretrained(write_model(tmp_path / "reward"), device="cpu")
    with one_line(CheckpointError, "no harm label", "train_moderation.py"):
        reward.moderate("a prompt", clip)


def test_a_label_that_never_applies_is_named(labelled: Path, tmp_path: Path) -> None:
    path = write_training_config(tmp_path / "run.yaml", labelled)
    config = parse_config(TrainConfig, ["--config", str(path)], "")
    data = load_data(replace(config, loss=replace(config.loss, harm_balance=0.0)), ["harm_any"])
    known = sum(int(np.count_nonzero(group.harm_targets[:, 0])) for group in (*data.train, *data.validation))
    assert known == sum(len(group.videos) for group in (*data.train, *data.validation)) > 50
    with pytest.raises(SampleError, match=r"for which .*harm_.* applies, or none .*leave them out \(heads: \[harm_any"):
        load_data(config, HARM_HEADS)
    with pytest.raises(SampleError, match="helpfulness label"):
        load_data(config, ["reward"])
