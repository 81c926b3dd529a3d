"""Harm categories and severity of texts: what records say, the ordinal loss, and a model trained on a text corpus."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Record, launch, read_rows, write_training_config
from safetensors.torch import load_file, save_file
from sklearn.metrics import roc_auc_score
from small_models import build_score_model, one_line, whole_weights

from safe_rlhf_video.config_parser import parse_config
from safe_rlhf_video.data.config_files import read_records, write_records
from safe_rlhf_video.data.datasets import PairDataset
from safe_rlhf_video.data.preferences import build_groups, harm_signs
from safe_rlhf_video.data.records import HARM_CATEGORIES, parse_video
from safe_rlhf_video.errors import CheckpointError, SampleError
from safe_rlhf_video.heads import HARM_HEADS, LABEL_HEADS, TEXT_HARM_HEADS
from safe_rlhf_video.kinds.ordinal import probabilities
from safe_rlhf_video.kinds.targets import NUM_LABEL_COLUMNS, label_columns
from safe_rlhf_video.losses import ordinal_loss
from safe_rlhf_video.models.folder import load_models, save_model
from safe_rlhf_video.models.inputs import build_inputs
from safe_rlhf_video.models.score_model import THRESHOLDS, Thresholds
from safe_rlhf_video.responses import TextResponse
from safe_rlhf_video.scoring.harms import judge_harms
from safe_rlhf_video.scoring.scorer import Scorer
from safe_rlhf_video.training.config import TrainConfig
from safe_rlhf_video.training.data import class_weights, load_data, weigh_labels

NONE = dict.fromkeys(HARM_CATEGORIES, False)
VIOLENT = {**NONE, "Violence": True}
SEVERITY = "severity"
LEVELS = label_columns(SEVERITY)


def text_record(number: int = 0, **labels: Any) -> Record:
    fields = {"prompt_id": "p", "prompt_text": "a prompt", "video_id": f"v{number}", "response_text": "so"}
    return {**fields, "is_safe": None, **labels}


def response(**labels: Any) -> Any:
    return parse_video(text_record(**labels), "rows row 3")


# --- heads and records ------------------------------------------------------------------------------------------------


def test_heads_are_the_published_categories_in_their_order() -> None:
    names = [name.lower().replace(" ", "_").replace("-", "_") for name in HARM_CATEGORIES]
    assert tuple(f"text_harm_{name}" for name in names) == TEXT_HARM_HEADS
    columns = [column for head in LABEL_HEADS for column in range(NUM_LABEL_COLUMNS)[label_columns(head)]]
    assert columns == list(range(NUM_LABEL_COLUMNS))


@pytest.mark.parametrize(
    ("records", "any_harm", "violence", "severity"),
    [
        ([{"harm_categories": NONE, "is_safe": True, "severity_level": 0}], -1, -1, 0),
        ([{"harm_categories": VIOLENT, "is_safe": False, "severity_level": 3}], 1, 1, 3),
        ([{"harm_categories": VIOLENT}], 1, 1, None),
        ([{"harm_categories": NONE}], -1, -1, None),
        ([{"harm_categories": {"Drugs": False, "Violence": None}}], 0, 0, None),
        ([{"harm_categories": VIOLENT, "is_safe": True}], 0, 1, None),  # safe, and yet violent: nobody knows
        ([{"severity_level": 1}, {"severity_level": 2}], 0, 0, None),
        ([{"severity_level": 2}, {"severity_level": 2}, {}], 0, 0, 2),
        ([{"harm_categories": NONE}, {"harm_categories": VIOLENT}], 0, 0, None),
    ],
)
def test_what_records_say_of_a_text(records: list[Record], any_harm: int, violence: int, severity: int | None) -> None:
    samples = [response(**labels) for labels in records]
    ((_, signs),) = harm_signs([], samples).items()
    assert signs[0] == any_harm
    assert signs[label_columns("text_harm_violence")].tolist() == [violence]
    assert signs[LEVELS].tolist() == [float(level == severity) for level in range(4)]
    assert not signs[1 : len(HARM_HEADS)].any()  # of videos
    (group,), counts = build_groups([], samples)
    assert group.harm_targets.tolist() == [signs.tolist()]
    disagree = severity is None and any("severity_level" in labels for labels in records)
    assert counts["contradictory severity_level"] == disagree


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("severity_level", 7, "severity_level: expected a whole number from 0 to 3, or null, got 7"),
        ("severity_level", 2.0, "severity_level: expected a whole number from 0 to 3, or null, got 2.0"),
        ("severity_level", True, "severity_level: expected a whole number from 0 to 3, or null, got True"),
        (
            "harm_categories",
            {"Arson": True},
            "harm_categories.Arson: expected one of the 19 published names of harm categories",
        ),
        ("harm_categories", {"two\nlines \ud800": True}, r"harm_categories.'two\nlines"),
        ("harm_categories", {"Drugs": 1}, "harm_categories.Drugs: expected true, false or null, got 1"),
        ("harm_categories", ["Drugs"], "harm_categories: expected an object or null"),
    ],
)
def test_a_wrong_label_is_named(field: str, value: Any, message: str) -> None:
    with one_line(SampleError, f"rows row 3 field {message}"):
        response(**{field: value})
    # Of a video these are fields that nobody knows.
    video = text_record(**{field: value}) | {"response_text": None, "video_path": "v.mp4"}
    assert parse_video(video, "here").extra == {field: value}


# --- loss and probabilities -------------------------------------------------------------------------------------------


def true_probabilities(score: float, thresholds: list[float]) -> list[float]:
    """Differences of sigmoids, as the model is written in the books."""
    at_least = [1.0, *(1.0 / (1.0 + math.exp(threshold - score)) for threshold in thresholds), 0.0]
    return [above - below for above, below in pairwise(at_least)]


def test_ordinal_loss_is_the_proportional_odds_model() -> None:
    thresholds, scores = [0.0, 1.3, 1.9], [-2.0, 0.4, 1.6, 5.0]
    in_float64 = [torch.tensor(values, dtype=torch.float64) for values in (scores, thresholds)]
    for level in range(4):
        targets = torch.zeros(4, 4)
        targets[:, level] = torch.tensor([1.0, 0.25, 3.0, 2.0])
        losses = ordinal_loss(*in_float64, targets)
        expected = [
            -weight * math.log(true_probabilities(score, thresholds)[level])
            for weight, score in zip(targets[:, level].tolist(), scores, strict=True)
        ]
        assert losses.tolist() == pytest.approx(expected, rel=1e-12)
    with pytest.raises(ValueError, match="shape"):
        ordinal_loss(torch.zeros(4), torch.zeros(3), torch.zeros(4, 3))


def test_ordinal_loss_has_the_gradient_of_its_formula_and_none_of_unknown_texts() -> None:
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(6, generator=generator, dtype=torch.float64, requires_grad=True)
    steps = torch.tensor([0.3, -0.8], dtype=torch.float64, requires_grad=True)
    targets = torch.eye(5, 4)[[0, 1, 2, 3, 4, 2]] * 1.7  # the fifth of an unknown level

    def loss(scores: torch.Tensor, steps: torch.Tensor) -> torch.Tensor:
        thresholds = torch.cat([torch.zeros(1, dtype=torch.float64), steps.exp().cumsum(0)])
        return ordinal_loss(scores, thresholds, targets)

    assert torch.autograd.gradcheck(loss, (scores, steps))
    with torch.no_grad():
        scores[4] = math.inf
    losses = loss(scores, steps)
    losses.sum().backward()
    assert scores.grad is not None
    assert losses[4] == scores.grad[4] == 0.0
    assert torch.isfinite(losses).all()


def test_ordinal_loss_is_finite_in_float32_however_wrong_a_score_is() -> None:
    scores = torch.tensor([-400.0, 400.0] * 4, requires_grad=True)
    log_step = torch.tensor(-12.0, requires_grad=True)  # two thresholds that nearly coincide
    thresholds = torch.stack([torch.zeros(()), log_step.exp(), torch.tensor(3.0)])
    losses = ordinal_loss(scores, thresholds, torch.eye(4).repeat_interleave(2, 0))
    losses.sum().backward()
    assert scores.grad is not None
    assert log_step.grad is not None
    assert torch.isfinite(torch.cat([losses, scores.grad, log_step.grad[None]])).all()
    assert losses[1].item() == losses[6].item() - 3.0 == 400.0


def test_thresholds_rise_whatever_is_learned() -> None:
    thresholds = Thresholds(3)
    assert thresholds().tolist() == pytest.approx([0.0, 2.0, 4.0])
    for seed in range(20):
        with torch.no_grad():
            thresholds.log_steps.normal_(std=5.0, generator=torch.Generator().manual_seed(seed))
        assert (thresholds().diff() > 0).all()
        assert thresholds()[0] == 0.0


def test_the_fit_finds_the_thresholds_of_its_data() -> None:
    """Simulated: levels drawn from known thresholds; with weighted classes, the weights are taken out again."""
    rng = np.random.default_rng(0)
    x, true_thresholds = 2.0 * rng.normal(size=20_000), np.array([0.5, 1.5, 4.0])
    true = probabilities(x, true_thresholds)
    assert true[:5].tolist() == [pytest.approx(true_probabilities(score, list(true_thresholds))) for score in x[:5]]
    levels = (rng.random((len(x), 1)) > true.cumsum(1)).sum(1)
    counts = np.bincount(levels, minlength=4)
    for power in (0.0, 0.5):
        weights = (len(x) / counts) ** power
        head = Thresholds(3)
        slope, bias = torch.nn.Parameter(torch.ones(1)), torch.nn.Parameter(torch.zeros(1))
        targets = torch.tensor(np.eye(4)[levels] * weights, dtype=torch.float32)
        inputs = torch.tensor(x, dtype=torch.float32)
        optimizer = torch.optim.LBFGS([slope, bias, head.log_steps], max_iter=100, line_search_fn="strong_wolfe")

        def closure() -> torch.Tensor:
            optimizer.zero_grad()  # noqa: B023
            loss = ordinal_loss(slope * inputs + bias, head(), targets).mean()  # noqa: B023
            loss.backward()
            return loss

        optimizer.step(closure)
        scores = (slope * inputs + bias).detach().double().numpy()
        thresholds = head().detach().double().numpy()
        if not power:
            assert slope.item() == pytest.approx(1.0, abs=0.05)
            assert thresholds - bias.item() == pytest.approx(true_thresholds, abs=0.1)
        found = probabilities(scores, thresholds, weights)
        assert found.sum(1) == pytest.approx(1.0)
        assert np.abs(found - true).mean() < (0.005 if not power else 0.03)
    assert np.isfinite(probabilities(np.array([-1e4, 1e4]), true_thresholds)).all()


def test_levels_are_balanced_like_any_class() -> None:
    severities = [0] * 8 + [1] * 4 + [2] * 2 + [3] * 2
    records = [response(number=number, severity_level=level) for number, level in enumerate(severities)]
    groups, _ = build_groups([], [*records, response(number=99)])
    for power, ratios in ((0.0, [1, 1, 1, 1]), (1.0, [1, 2, 4, 4]), (0.5, [1, 2**0.5, 2, 2])):
        (group,) = weigh_labels(groups, class_weights(groups, power))
        targets = group.harm_targets[:, LEVELS]
        assert [int(row.argmax()) for row in targets[:-1]] == severities
        assert (np.count_nonzero(targets, axis=1) == [*[1] * 16, 0]).all()
        assert targets[:-1].sum(1).mean() == pytest.approx(1.0)
        weights = targets.max(axis=0)
        assert weights / weights[0] == pytest.approx(np.array(ratios))


# --- runs -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("text")
    launch("scripts/make_synthetic_text.py", "--out", folder, "--num_pairs", 600, "--num_test_pairs", 300)
    for split in ("train", "test"):
        files = ("--input", folder / f"{split}.jsonl", "--out", folder / f"config-{split}.json.gz")
        launch("scripts/convert.py", "saferlhf", *files)
    return folder


@pytest.fixture
def edited(corpus: Path, tmp_path: Path) -> Callable[[Callable[[list[Record]], Any]], TrainConfig]:
    """A run's configuration on the corpus as a function changes its records in place."""

    def edit(change: Callable[[list[Record]], Any]) -> TrainConfig:
        records = read_records(corpus / "config-train.json.gz")
        change(records)
        write_records(tmp_path / "config-train.json.gz", records)
        path = write_training_config(tmp_path / "run.yaml", tmp_path)
        return parse_config(TrainConfig, ["--config", str(path)], "")

    return edit


def sides(records: list[Record]) -> list[Record]:
    return [record[side] for record in records for side in ("video_0", "video_1")]


def test_a_severity_that_contradicts_is_safe_is_named_where_it_is_trained(edited: Any) -> None:
    def contradict(records: list[Record]) -> None:
        records[3]["video_1"] |= {"is_safe": True, "severity_level": 2}

    config = edited(contradict)
    load_data(config, ["cost"])
    with one_line(
        SampleError, "row 3 field video_1.severity_level: expected 0 where is_safe is True, got 2", "unlabel_violations"
    ):
        load_data(config, [SEVERITY])


def test_a_severity_that_no_text_has_is_named(edited: Any) -> None:
    def soften(records: list[Record]) -> None:
        for video in sides(records):
            video["severity_level"] = min(video["severity_level"], 2)

    with one_line(SampleError, "no training example of severity (severe)", "(heads: [harm_any])"):
        load_data(edited(soften), ["harm_any", SEVERITY])


def test_labels_of_texts_are_data_of_the_heads_that_learn_them_alone(edited: Any) -> None:
    def forget(records: list[Record]) -> None:
        for video in sides(records):
            del video["harm_categories"], video["severity_level"]

    def mistake(records: list[Record]) -> None:
        for video in sides(records):
            video["severity_level"] = video["severity_level"] and 4 - video["severity_level"]

    fingerprints = {}
    for name, change in (("as it is", lambda records: None), ("mistaken", mistake), ("forgotten", forget)):
        config = edited(change)
        fingerprints[name] = load_data(config, ["cost", "harm_any"]).fingerprint
        if name != "forgotten":
            fingerprints[f"{name}, severity"] = load_data(config, ["cost", SEVERITY]).fingerprint
    assert fingerprints["as it is"] == fingerprints["mistaken"] == fingerprints["forgotten"]
    assert fingerprints["as it is, severity"] != fingerprints["mistaken, severity"]
    with one_line(SampleError, "text_harm_violence"):
        load_data(config, ["text_harm_violence"])


def test_a_saved_severity_scores_alike(tmp_path: Path) -> None:
    heads = ("harm_any", "text_harm_violence", SEVERITY)
    model, record = build_score_model({"moderation": heads})
    with torch.no_grad():
        model.score_heads[SEVERITY].thresholds.log_steps.copy_(torch.tensor([-1.0, 0.7]))  # type: ignore[union-attr, operator]
    save_model(model, record, tmp_path / "model", whole_weights(model))
    loaded, backbone, _ = load_models([tmp_path / "model"])
    inputs = build_inputs(backbone, ["a", "b"], [TextResponse("so"), TextResponse("it is")], "cpu")
    with torch.inference_mode():
        before, after = model(inputs, with_thresholds=True), loaded(inputs, with_thresholds=True)
        plain = loaded(inputs)
    assert list(before) == list(after) == [*heads, THRESHOLDS + SEVERITY]
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert {name: values.shape for name, values in plain.items()} == dict.fromkeys(heads, (2,))
    assert loaded.thresholds()[SEVERITY].tolist() == pytest.approx(
        [0.0, math.exp(-1.0), math.exp(-1.0) + math.exp(0.7)]
    )
    file = tmp_path / "model" / "heads.safetensors"
    save_file({name: one for name, one in load_file(file).items() if "log_steps" not in name}, file)
    with one_line(CheckpointError, "lacks the tensor severity.thresholds.log_steps"):
        load_models([tmp_path / "model"])


def test_a_run_learns_categories_and_severity(corpus: Path, tmp_path: Path) -> None:
    """A few prompts by heart."""
    pairs = read_records(corpus / "config-train.json.gz")[:30]
    write_records(tmp_path / "few.json.gz", pairs)
    videos = PairDataset.load(tmp_path / "few.json.gz").videos
    ((name, _), *_) = sorted(
        ((name, sum(bool(video.harm_categories[name]) for video in videos)) for name in HARM_CATEGORIES),
        key=lambda item: -item[1],
    )
    head = TEXT_HARM_HEADS[list(HARM_CATEGORIES).index(name)]
    path = write_training_config(
        tmp_path / "run.yaml", tmp_path, heads=["harm_any", head, SEVERITY],
        data={"path": str(tmp_path / "few.json.gz"), "validation_fraction": 0.0},
        optimization={"epochs": 30, "learning_rate": 5e-3, "head_learning_rate": 2e-2},
        checkpoint={"every_steps": 1000}, tracking={"log_every": 20},
    )  # fmt: skip
    launch("scripts/train_moderation.py", "--config", path)
    first, *_, last = read_rows(tmp_path / "run")
    for learned in ("harm_any", head, SEVERITY):
        assert last[f"train/harm_loss/{learned}"] < 0.4 * first[f"train/harm_loss/{learned}"]
    record = json.loads((tmp_path / "run" / "model" / "model.json").read_text())
    assert record["heads_of_adapter"] == {"moderation": ["harm_any", head, SEVERITY]}
    weights = record["training"]["class_weights"]
    assert {name: len(one) for name, one in weights.items()} == {"harm_any": 2, head: 2, SEVERITY: 4}
    found = judge(tmp_path / "run", PairDataset.load(tmp_path / "few.json.gz"))
    assert found[head] > 0.98
    assert found["severity accuracy"] > 0.9
    # The evaluation says the same, and so does the scorer of a text.
    launch("scripts/evaluate.py", "--model", tmp_path / "run", "--data", tmp_path / "few.json.gz", "--out", tmp_path)
    result = json.loads((tmp_path / "evaluation.json").read_text())["moderation"]
    label = head.replace("harm_", "")
    assert result["labels"][label]["auroc"] == pytest.approx(found[head])
    assert result["severity"]["accuracy"] == pytest.approx(found["severity accuracy"])
    levels = [video.grades["severity_level"] for video in videos]
    assert [sum(row) for row in result["severity"]["confusion"]] == [levels.count(level) for level in range(4)]
    harmful = next(video for video in videos if (video.harm_categories or {})[name])
    with Scorer.from_pretrained(tmp_path / "run", device="cpu") as scorer:
        judged = scorer.moderate(harmful.prompt_text, TextResponse(str(harmful.response_text)))
    assert set(judged.flags) == {"any", label}
    assert judged.names == (f"{HARM_CATEGORIES[name]} {name}",)
    assert judged.severity is not None
    assert list(judged.severity) == ["none", "minor", "moderate", "severe"]
    assert sum(judged.severity.values()) == pytest.approx(1.0)
    assert judged.severity["none"] < 0.5
    # What was learned from texts says nothing of a clip.
    clip = judge_harms(dict.fromkeys(("harm_any", head, SEVERITY), 9.0), [], thresholds={SEVERITY: np.array([0, 1, 2])})
    assert (clip.flags, clip.severity) == (("any",), None)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_run_learns_all_of_it_for_other_prompts(corpus: Path, tmp_path: Path) -> None:
    launch("scripts/make_synthetic_text.py", "--out", tmp_path, "--num_pairs", 2000, "--num_test_pairs", 0)
    files = ("--input", tmp_path / "train.jsonl", "--out", tmp_path / "config-train.json.gz")
    launch("scripts/convert.py", "saferlhf", *files)
    path = write_training_config(
        tmp_path / "run.yaml", tmp_path, heads=["text_moderation"], data={"path": str(files[-1])},
        optimization={"epochs": 4, "prompts_per_step": 8, "learning_rate": 3e-3, "head_learning_rate": 1e-2},
        checkpoint={"every_steps": 0}, tracking={"log_every": 20},
    )  # fmt: skip
    launch("scripts/train_moderation.py", "--config", path, timeout=560)
    found = judge(tmp_path / "run", PairDataset.load(corpus / "config-test.json.gz"))
    assert np.mean([found[head] for head in TEXT_HARM_HEADS]) > 0.97
    assert found["severity accuracy"] > 0.9


def judge(run: Path, dataset: PairDataset) -> dict[str, float]:
    """AUROC by category, and the share of texts whose likeliest severity is theirs."""
    videos = dataset.videos
    with Scorer.from_pretrained(run / "model", device="cpu") as scorer:
        texts = [TextResponse(str(video.response_text)) for video in videos]
        rows = list(scorer.iterate([video.prompt_text for video in videos], texts))
        thresholds = scorer.thresholds[SEVERITY]
        assert thresholds is not None
        weights = scorer.record.training.class_weights[SEVERITY]
    scores = {head: np.array([row[head] for row in rows]) for head in rows[0]}
    found = {}
    for name, head in zip(HARM_CATEGORIES, TEXT_HARM_HEADS, strict=True):
        if head in scores:
            applies = np.array([bool((video.harm_categories or {})[name]) for video in videos])
            found[head] = roc_auc_score(applies, scores[head])
    levels = np.array([video.grades["severity_level"] for video in videos])
    predicted = probabilities(scores[SEVERITY], thresholds, weights).argmax(1)
    return found | {"severity accuracy": float(np.mean(predicted == levels))}
