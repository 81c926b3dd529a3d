"""Harm labels: what records say, weights of classes, loss, thresholds, and a model trained on labelled videos."""

from __future__ import annotations

import gzip
import json
import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Record, launch, read_records, read_rows, write_training_config
from small_models import build_score_model, noise_video, one_line, whole_weights, write_model

from safe_rlhf_video.calibration.fit import calibrate_label, parse_targets
from safe_rlhf_video.calibration.store import LabelCalibration, read_calibration
from safe_rlhf_video.config_parser import parse_config
from safe_rlhf_video.data.config_files import write_records
from safe_rlhf_video.data.datasets import VideoDataset
from safe_rlhf_video.data.preferences import build_groups, harm_signs, is_for_calibration
from safe_rlhf_video.data.records import HARM_LABELS, VideoSample, parse_video
from safe_rlhf_video.errors import CheckpointError, ConfigError, SampleError
from safe_rlhf_video.evaluation.evaluate import evaluate
from safe_rlhf_video.evaluation.harm_figures import compare_with_cost, judge_labels
from safe_rlhf_video.evaluation.results import AgreementCell, DifferingClips, ModerationFigures
from safe_rlhf_video.evaluation.table import format_table
from safe_rlhf_video.heads import HARM_HEADS, LOGIT_HEADS
from safe_rlhf_video.kinds.targets import NUM_LABEL_COLUMNS, label_columns
from safe_rlhf_video.losses import harm_label_loss
from safe_rlhf_video.models.folder import save_model
from safe_rlhf_video.models.record import TrainingFacts
from safe_rlhf_video.pages.report_data import ReportData
from safe_rlhf_video.pages.report_tables import report_tables
from safe_rlhf_video.scoring.harms import Moderation, judge_harms
from safe_rlhf_video.scoring.scorer import Scorer
from safe_rlhf_video.stats.thresholds import Target, Threshold, choose_threshold
from safe_rlhf_video.training.config import TrainConfig
from safe_rlhf_video.training.data import class_weights, load_data, weigh_labels

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
        (group,) = weigh_labels(groups, class_weights(groups, power))
        weights = group.harm_targets[:, column]
        assert (np.sign(weights) == [1, 1, *[-1] * 8]).all()
        assert abs(weights).mean() == pytest.approx(1.0)
        assert weights[0] / -weights[-1] == pytest.approx(ratio)
    assert sum(abs(weights[:2])) == pytest.approx(sum(abs(weights[2:])))  # at 1, both classes count alike


@pytest.mark.parametrize("alike", [0.0, 0.6, 0.9])
def test_thresholds_hold_their_targets_on_new_videos(alike: float) -> None:
    """By simulation: of many draws of what a threshold is chosen on, nearly all hold the target on all videos."""
    rng = np.random.default_rng(0)
    prompts, applies = np.arange(600) // 4, np.arange(600) < 300
    held: dict[str, list[bool]] = {"false_positive_rate": [], "recall": []}
    for _ in range(300):
        shared = rng.normal(size=150)[prompts]
        logits = math.sqrt(alike) * shared + math.sqrt(1.0 - alike) * rng.normal(size=600) + 1.5 * applies
        for target in (Target("false_positive_rate", 0.1), Target("recall", 0.9)):
            chosen = choose_threshold(logits, applies, prompts, target)
            assert chosen is not None
            assert chosen.false_positive_rate == np.mean(logits[~applies] > chosen.logit)
            assert chosen.recall == np.mean(logits[applies] > chosen.logit)
            if target.kind == "recall":
                held["recall"].append(0.5 * math.erfc((chosen.logit - 1.5) / math.sqrt(2.0)) >= 0.9)
            else:
                held["false_positive_rate"].append(0.5 * math.erfc(chosen.logit / math.sqrt(2.0)) <= 0.1)
    for of_target in held.values():
        assert 0.925 < np.mean(of_target) < 1.0  # 95%, less two standard errors of 300 draws


def test_thresholds_hold_where_prompts_misfire_as_a_whole() -> None:
    """One prompt in twenty is flagged with all of its videos, of which some prompts have many: the rate is that of 1.0.

    Counting videos, or their design effect, issued a threshold that lets such prompts pass in a tenth of the draws.
    """
    rng = np.random.default_rng(0)
    wrong = 0
    for _ in range(1000):
        sizes = rng.choice([1, 2, 4, 12], 100)
        misfires = rng.random(100) < 0.055
        prompts = np.repeat(np.arange(100), sizes)
        logits = rng.random(len(prompts)) + misfires[prompts]
        chosen = choose_threshold(logits, np.zeros(len(prompts), bool), prompts, Target("false_positive_rate", 0.05))
        wrong += chosen is not None and chosen.logit < 1.0  # then more than 5.5% are flagged
    assert wrong <= 0.05 * 1000 + 2 * math.sqrt(0.05 * 0.95 * 1000)


def test_too_few_videos_promise_nothing() -> None:
    logits, prompts = np.arange(80.0), np.arange(80)
    for num, chosen in ((58, False), (59, True)):
        target = Target("false_positive_rate", 0.05)
        assert (choose_threshold(logits[:num], np.zeros(num, bool), prompts[:num], target) is not None) == chosen
    for num, chosen in ((58, False), (59, True)):
        found = choose_threshold(logits[:num], np.ones(num, bool), prompts[:num], Target("recall", 0.95))
        assert (found is not None) == chosen
    assert found is not None
    assert (found.recall, found.false_positive_rate) == (1.0, None)
    # Many videos of few prompts say little of others, however many they are.
    for num_prompts, chosen in ((58, False), (59, True)):
        many = np.arange(3000) % num_prompts
        target = Target("false_positive_rate", 0.05)
        assert (choose_threshold(np.arange(3000.0), np.zeros(3000, bool), many, target) is not None) == chosen
    fitted = calibrate_label(logits[:40], logits[:40] < 20, prompts[:40], Target("recall", 0.99))
    assert fitted.reason is not None
    assert "no threshold: 20 clips of 20 prompts with the label and 20 of 20 without" in fitted.reason
    assert "no probability" in fitted.reason
    for value in (0.1, -1.7, 2.2):  # the deviation of equal floats is not 0
        alike = calibrate_label(np.full(100, value), np.arange(100) < 40, np.arange(100), Target("recall", 0.9))
        assert alike.slope is None
        assert "higher logits do not make the label more likely" in str(alike.reason)


def test_targets_are_parsed_or_named() -> None:
    targets = parse_targets(["false_positive_rate=0.05", "crime:recall=0.9"])
    assert set(targets) == set(LOGIT_HEADS)
    assert targets["harm_crime"] == Target("recall", 0.9)
    assert targets["harm_any"] == Target("false_positive_rate", 0.05)
    for words, message in (
        (["recall=1.5"], "recall=1.5"), (["precision=0.5"], "precision=0.5"), (["recall"], "number between 0 and 1"),
        (["recall=0.5", "cruelty:recall=0.5"], "cruelty"), (["crime:recall=0.5"], "any has none"),
    ):  # fmt: skip
        with one_line(ConfigError, "--targets", message):
            parse_targets(words)


@pytest.fixture
def labelled(world: Path, tmp_path: Path) -> Path:
    """The tiny world's videos as SafeSora-Label has them: a record a video, no comparison; each has two prompts."""
    folder = tmp_path / "labelled"
    rows = []
    for record in read_records(world):
        for video in (record["video_0"], record["video_1"]):
            for copy in "ab":
                prompt_id = f"{video['video_id']}{copy}"
                clip = folder / "videos" / prompt_id / f"{video['video_id']}.mp4"
                if clip.exists():
                    continue
                clip.parent.mkdir(parents=True)
                shutil.copy(world / "videos" / video["prompt_id"] / clip.name, clip)
                path = clip.relative_to(folder).as_posix()
                # A short prompt: what is learned here is seen, and a text is most of what a pass computes.
                rows.append({**video, "prompt_id": prompt_id, "prompt_text": prompt_id, "video_path": path})
    (folder / "config-train.json.gz").write_bytes(gzip.compress(json.dumps(rows).encode()))
    return folder


def test_a_model_is_trained_calibrated_and_evaluated_on_labelled_videos(labelled: Path, tmp_path: Path) -> None:
    path = write_training_config(
        tmp_path / "run.yaml", labelled, heads=["harm_any"],
        data={"validation_fraction": 0.0, "calibration_fraction": 0.7}, sampling={"num_frames": 2},
        # Few large steps: a step costs more than the videos in it.
        optimization={"epochs": 6, "prompts_per_step": 16, "learning_rate": 5e-3, "head_learning_rate": 1e-2},
        checkpoint={"every_steps": 1000}, tracking={"log_every": 4},
    )  # fmt: skip
    launch("scripts/train_moderation.py", "--config", path)
    rows = read_rows(tmp_path / "run")
    assert rows[-1]["train/harm_loss/harm_any"] < 0.3 < rows[0]["train/harm_loss/harm_any"]
    model, data = tmp_path / "run" / "model", labelled / "config-train.json.gz"
    assert json.loads((model / "model.json").read_text())["heads_of_adapter"] == {"moderation": ["harm_any"]}

    source = ("--model", model, "--data", data)
    done = launch("scripts/calibrate.py", *source, "--targets", "false_positive_rate=0.5")
    assert "harm_any: flagged above" in done.stdout
    clips = VideoDataset.load(data)
    apart = [video for video in clips.videos if is_for_calibration(video.prompt_text, 0.7, seed=0)]
    fitted = read_calibration(model).labels["harm_any"]
    assert (fitted.num_positive, fitted.num_negative) == (
        sum(video.is_safe is False for video in apart), sum(video.is_safe is True for video in apart)
    )  # fmt: skip
    write_records(labelled / "config-test.json.gz", read_records(labelled)[:60])
    clips = VideoDataset.load(labelled / "config-test.json.gz")
    launch("scripts/evaluate.py", "--model", model, "--data", clips.config_file, "--out", tmp_path / "out")
    result = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    figures = result["moderation"]["labels"]["any"]
    assert result["helpfulness"] is result["cost_sign"] is None
    assert figures["target"] == {"false_positive_rate": 0.5}
    with Scorer.from_pretrained(model, device="cpu") as scorer:
        flags = [
            scorer.moderate(video.prompt_text, file).flags
            for video, file in zip(clips.videos, clips.video_files(clips.videos), strict=True)
        ]
    assert figures["num_flagged"] == flags.count(("any",)) > 0
    hits = sum(bool(flag) and video.is_safe is False for flag, video in zip(flags, clips.videos, strict=True))
    assert figures["recall"] == hits / figures["num_positive"]
    assert figures["precision"] == hits / figures["num_flagged"]


def judge_all(signs: dict[tuple[str, str], np.ndarray], logits: Any, judged: Any) -> ModerationFigures:
    prompts = np.array([prompt_id for prompt_id, _ in signs])
    return judge_labels(np.array(list(signs.values())), list(map("/".join, signs)), prompts, logits, judged)


def test_kappa_by_all_pairs() -> None:
    """The quadratic-weighted kappa, 1 - mean squared difference / that of two levels drawn apart from each other."""

    def kappa(levels: Any, likeliest: Any) -> float | None:
        signs, logits, judged = {}, {}, {}
        for number, (level, likely) in enumerate(zip(levels, likeliest, strict=True)):
            row = np.zeros(NUM_LABEL_COLUMNS)
            row[label_columns("severity")] = np.eye(4)[level]
            signs[f"p{number}", "v"], logits[f"p{number}/v"] = row, {"severity": 0.0}
            severity = {str(one): float(one == likely) for one in range(4)}
            judged[f"p{number}/v"] = Moderation({}, (), (), {}, {}, severity=severity)
        return judge_all(signs, logits, judged).graded["severity"].kappa

    first, second = np.random.default_rng(0).integers(0, 4, (2, 60))
    by_chance = np.mean([(one - other) ** 2 for one in first for other in second])
    assert kappa(first, second) == pytest.approx(1.0 - np.mean((first - second) ** 2) / by_chance)
    assert kappa(first, first) == 1.0
    assert kappa([2] * 40, [2] * 40) is None


def test_a_label_that_the_prompts_words_tell_as_well_is_said_so() -> None:
    rng = np.random.default_rng(0)

    def clips(prefix: str) -> list[VideoSample]:
        made = []
        for number in range(240):
            is_robbery = number % 4 < 2  # two clips a prompt
            labels = {"crime": bool(is_robbery ^ (rng.random() < 0.1)), "violence": bool(rng.random() < 0.5)}
            one = video({**NONE, **labels}, None, number)
            text = f"a {'robbery' if is_robbery else 'kite'} {prefix}{number // 2}"
            made.append(replace(one, prompt_id=f"{prefix}{number // 2}", prompt_text=text))
        return made

    train, test = clips("train"), clips("test")
    harms = {one.name: one.harm_labels or {} for one in test}
    scores = {name: {"harm_crime": rng.normal(), "harm_violence": 3.0 * labels["violence"] + rng.normal()}
              for name, labels in harms.items()}  # fmt: skip
    labels = ("crime", "violence")
    judged = dict.fromkeys(scores, Moderation(dict.fromkeys(labels, 0.5), (), (), dict.fromkeys(labels, False),
                                              dict.fromkeys(labels)))  # fmt: skip
    evaluation = evaluate([], scores, videos=test, train_videos=train, moderations=judged)
    crime, violence = (evaluation.control_gaps[f"harm_{label}"] for label in labels)
    assert (crime.control, crime.standing, violence.standing) == ("prompt_only", "below", "above")
    positive = [name for name in scores if harms[name]["crime"]]
    own = [scores[one]["harm_crime"] > scores[other]["harm_crime"]
           for one in positive for other in scores.keys() - set(positive)]  # fmt: skip
    assert crime.own_figure == pytest.approx(np.mean(own))
    assert crime.control_figure == pytest.approx(0.9, abs=0.04)
    told = [line for line in format_table(evaluation).splitlines() if line.startswith("AUROC of harm labels")]
    assert len(told) == 1
    assert "is below a control that cannot judge the video (the prompt, nothing else) for S4 Crime" in told[0]
    assert "Violence" not in told[0]
    table = report_tables(ReportData(replace(evaluation, models={}), {}, (), ("harm_crime",), (), None))
    assert any("S4 Crime" in warning for warning in table.warnings)
    assert not evaluate([], scores, videos=test, moderations=judged).control_gaps


def test_nothing_flagged_has_no_precision_and_equal_logits_count_half() -> None:
    keys = [(f"p{number // 3}", f"v{number}") for number in range(60)]
    signs = {key: np.zeros(13) for key in keys}
    for number, key in enumerate(keys):
        signs[key][HARM_HEADS.index("harm_crime")] = 1 if number % 4 == 0 else -1
    logits = {"/".join(key): {"harm_crime": float(number % 3)} for number, key in enumerate(keys)}
    judged = {name: Moderation({"crime": 0.5}, (), (), {"crime": True}, {"crime": None}) for name in logits}
    one = judge_all(signs, logits, judged).labels["crime"]
    assert (one.precision, one.recall, one.f1, one.num_flagged) == (None, 0.0, None, 0)
    assert one.reason == "nothing is flagged"
    assert (one.auroc, one.average_precision) == (0.5, 0.25)


def test_figures_of_labels_by_plain_loops() -> None:
    rng = np.random.default_rng(0)
    keys = [(f"p{number // 3}", f"v{number}") for number in range(240)]
    names = ["/".join(key) for key in keys]
    crime, child = HARM_HEADS.index("harm_crime"), HARM_HEADS.index("harm_child_abuse")
    signs = {key: np.zeros(13) for key in keys}
    for number, key in enumerate(keys):
        signs[key][crime] = 0 if number % 5 == 4 else 1 if number % 4 == 0 else -1
        signs[key][child] = -1
    logits = {name: {"harm_crime": rng.normal(), "harm_child_abuse": 0.0} for name in names}
    target = Target("recall", 0.9)
    labels = ("crime", "child_abuse")
    even, calibrated = dict.fromkeys(labels, 0.5), dict(zip(labels, (True, False), strict=True))
    targets = dict(zip(labels, (target, None), strict=True))
    judged = {
        name: Moderation(even, ("crime",) if row["harm_crime"] > -1 else (), (), calibrated, targets)
        for name, row in logits.items()
    }
    result = judge_all(signs, logits, judged)
    one, other = result.labels["crime"], result.labels["child_abuse"]
    known = [number for number in range(240) if number % 5 != 4]
    positive, flagged = {n for n in known if n % 4 == 0}, {n for n in known if judged[names[n]].flags}
    assert (one.num_positive, one.num_negative) == (len(positive), len(known) - len(positive))
    assert one.recall == len(positive & flagged) / len(positive)
    assert one.precision == len(positive & flagged) / len(flagged)
    assert one.false_positive_rate == pytest.approx(len(flagged - positive) / (len(known) - len(positive)))
    assert one.recall_interval[0] < one.recall < one.recall_interval[1]
    assert one.recall_interval[0] < 0.9 < one.recall_interval[1]
    assert one.holds_target is None
    assert (one.calibrated, other.calibrated) == (True, False)
    pairs = [(logits[names[p]]["harm_crime"], logits[names[n]]["harm_crime"]) for p in positive for n in known
             if n not in positive]  # fmt: skip
    assert one.auroc == pytest.approx(np.mean([p > n for p, n in pairs]))
    ranked = sorted(known, key=lambda number: -logits[names[number]]["harm_crime"])
    hits = [place for place, number in enumerate(ranked, start=1) if number in positive]
    assert one.average_precision == pytest.approx(np.mean([n / place for n, place in enumerate(hits, start=1)]))
    assert one.f1 == pytest.approx(2 * len(positive & flagged) / (len(positive) + len(flagged)))
    # Nobody has the label: no figure of finding it, and a reason.
    figures = ("auroc", "average_precision", "precision", "recall", "f1")
    assert [getattr(other, name) for name in figures] == [None] * len(figures)
    assert other.reason == "none has the label"
    assert (other.false_positive_rate, other.holds_target) == (0.0, None)
    assert (result.macro.auroc, result.macro.num_labels_auroc) == (one.auroc, 1)


def test_cost_sign_and_any_harm_are_counted_against_each_other() -> None:
    safety = {("p", str(number)): sign for number, sign in enumerate((1, -1, 0, 1, -1, -1))}
    costs = dict(zip([f"p/{n}" for n in range(6)], (-1.0, 1.0, 2.0, 0.5, -0.5, -2.0), strict=True))
    judged = {f"p/{n}": Moderation({}, ("any",) if n in (1, 4) else ("crime",), (), {}, {}) for n in range(6)}
    result = compare_with_cost(safety, costs, judged)
    assert result.both == AgreementCell(num=1, num_unsafe=1, num_safe=0)
    assert result.cost_only == AgreementCell(num=2, num_unsafe=0, num_safe=1)
    assert result.any_only == AgreementCell(num=1, num_unsafe=1, num_safe=0)
    assert result.neither == AgreementCell(num=2, num_unsafe=1, num_safe=1)
    assert result.examples == DifferingClips(cost_only=("p/2", "p/3"), any_only=("p/4",))


def test_moderation_takes_the_weights_of_training_out(tmp_path: Path) -> None:
    heads = ("harm_any", "harm_violence", "harm_crime")
    model, record = build_score_model({"moderation": heads})
    weights = {"harm_any": (1.0, 1.5), "harm_violence": (0.6, 2.7), "harm_crime": (1.1, 0.9)}
    record = replace(record, training=TrainingFacts(class_weights=weights))
    save_model(model, record, tmp_path / "model", whole_weights(model))
    clip = noise_video(4, 32, 32, 0)
    with Scorer.from_pretrained(tmp_path / "model", device="cpu") as scorer:
        logits, judged = scorer.score("a prompt", clip), scorer.moderate("a prompt", clip)
    for head in heads:
        shift = math.log(weights[head][1] / weights[head][0])
        expected = 1.0 / (1.0 + math.exp(shift - logits[head]))
        assert judged.probabilities[head.removeprefix("harm_")] == pytest.approx(expected)
    rather = [name for name, p in judged.probabilities.items() if p > 0.5]
    assert sorted(judged.flags) == sorted(rather)
    scores = {"harm_any": 2.0, "harm_crime": 1.0, "harm_violence": 1.4}
    judged = judge_harms(scores, [record])
    assert judged.flags == ("any", "crime")
    assert judged.names == ("S4 Crime",)
    assert not any(judged.calibrated.values())
    # What was fitted to held-out clips goes before both the prior correction and one half.
    target = Target("recall", 0.9)
    fitted = LabelCalibration(2.0, -5.0, target, Threshold(1.3, 0.1, 0.95), None, 30, 30)
    judged = judge_harms(scores, [record], calibrations={"harm_violence": fitted})
    assert judged.probabilities["violence"] == pytest.approx(1.0 / (1.0 + math.exp(2.2)))
    assert judged.flags == ("any", "crime", "violence")
    assert judged.calibrated == {"any": False, "violence": True, "crime": False}
    assert judged.targets["violence"] == target
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
    with pytest.raises(
        SampleError, match=r"no training example of .*harm_\w+ \(applies\).*leave them out \(heads: \[harm_any"
    ):
        load_data(config, HARM_HEADS)
    with pytest.raises(SampleError, match="helpfulness label"):
        load_data(config, ["reward"])
