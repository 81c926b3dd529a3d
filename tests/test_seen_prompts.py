"""Hashes of prompts that a model has seen: written by training and calibration, handed on, counted, and marked."""

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from made_up_evaluations import control_gap, dimension_figures, made_up_evaluation, sign_figures
from small_models import COST, REWARD, one_line, write_model

from safe_rlhf_video.calibration.calibrate import calibrate
from safe_rlhf_video.calibration.held_out import describe_dropped, held_out
from safe_rlhf_video.calibration.store import read_calibration
from safe_rlhf_video.data.datasets import PairDataset
from safe_rlhf_video.data.prompt_hashes import FILE_NAME, hash_prompts, read_trained_prompts, write_trained_prompts
from safe_rlhf_video.errors import CheckpointError, SampleError
from safe_rlhf_video.evaluation.evaluate_models import EvaluationRequest, evaluate_models
from safe_rlhf_video.evaluation.generator_results import Duel, DuelFigures, GeneratorEvaluation
from safe_rlhf_video.evaluation.generator_table import format_generators
from safe_rlhf_video.evaluation.results import (
    ComparisonFigures,
    Evaluation,
    MacroFigures,
    ModerationFigures,
    SeenPrompts,
)
from safe_rlhf_video.evaluation.seen_prompts import (
    count_seen,
    describe_seen,
    in_sample_heads,
    in_sample_multiplier,
    mark_in_sample,
)
from safe_rlhf_video.evaluation.table import format_comparison, format_table
from safe_rlhf_video.export.export_model import export_model
from safe_rlhf_video.kinds.ordinal import OrdinalFigures
from safe_rlhf_video.models.record import TrainingFacts
from safe_rlhf_video.pages.report_data import ReportData
from safe_rlhf_video.pages.report_tables import report_tables

SEEN = SeenPrompts(("reward",), 9, 3, 0)


def test_hashes_are_the_same_on_every_machine_and_reveal_no_prompt() -> None:
    known = hash_prompts(["A red  kite", "a dog", "a dog "], salt="data")
    # The first 8 bytes of SHA-256 of "data/a dog" and "data/a red kite", rising.
    assert known == hash_prompts(["a DOG", "a red kite"], salt="data")
    assert known.hashes == "ICFe7Hwqr0YlAetBbsXH+g=="
    assert known.among(["a Dog", "a cat", "a  red kite"]) == {"a dog", "a red kite"}
    assert known.joined(["a cat"]).among(["a cat", "a dog", "a cow"]) == {"a cat", "a dog"}
    assert hash_prompts(["a dog"], salt="other").hashes not in known.hashes
    assert len(hash_prompts(map(str, range(14_711)), salt="data").hashes) < 160_000


def test_a_run_writes_hashes_of_what_it_read_and_damage_is_one_line(
    reward_run: Path, world: Path, tmp_path: Path
) -> None:
    trained = read_trained_prompts(reward_run / "model")
    train, test = (PairDataset.load(world / f"config-{split}.json.gz").pairs for split in ("train", "test"))
    assert trained is not None
    assert len(trained.among(pair.prompt_text for pair in train)) == len({pair.prompt_id for pair in train})
    assert not trained.among(pair.prompt_text for pair in test)
    assert train[0].prompt_text not in (reward_run / "model" / FILE_NAME).read_text()
    write_trained_prompts(tmp_path, trained)
    for content, part in (("{", "not valid JSON"), ('{"format_version": 2, "trained": {}}', "format_version"),
                          ('{"format_version": 1, "trained": {"salt": "", "hashes": "AAAA"}}', "8 bytes")):  # fmt: skip
        (tmp_path / FILE_NAME).write_text(content)
        with one_line(CheckpointError, FILE_NAME, part):
            read_trained_prompts(tmp_path)


def test_the_training_file_is_known_without_train_data(reward_run: Path, world: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(reward_run / "model", folder)

    def judge(split: str) -> Evaluation:
        return evaluate_models(
            EvaluationRequest([str(folder)], str(world / f"config-{split}.json.gz"), tmp_path / split)
        )

    result = judge("train")
    (seen,) = result.seen_prompts.values()
    num = seen.num_prompts
    assert seen == SeenPrompts(("reward",), num, num, 0)
    assert result.in_sample == {"helpfulness": f"{folder} was trained on {num} of {num} prompts"}
    accuracy = f"{result.dimensions['helpfulness'].accuracy:.4f}"
    table = format_table(result)
    assert any(accuracy in line and line.endswith("*") for line in table.splitlines())
    assert f"* {folder}: in-sample, trained on {num} of the {num} prompts" in table
    other = judge("test")
    assert other.in_sample == {}
    assert "in-sample" not in format_table(other)
    # A folder of an earlier release does not say.
    (folder / FILE_NAME).unlink()
    told = format_table(judge("train"))
    assert f"{folder}: cannot be checked for training on these prompts, without a prompts.json" in told


def test_calibration_keeps_hashes_refuses_what_was_trained_on_and_says_what_it_drops(
    world: Path, tmp_path: Path
) -> None:
    folder = write_model(tmp_path / "reward", REWARD)
    pairs = PairDataset.load(world / "config-train.json.gz").pairs
    texts = [pair.prompt_text for pair in pairs]

    def score(_: Any, samples: Sequence[Any]) -> dict[str, dict[str, float]]:
        rng = np.random.default_rng(0)
        names = [video.name for pair in samples for video in (pair.video_0, pair.video_1)]
        return {name: {"reward": float(rng.normal())} for name in names}

    write_trained_prompts(folder, hash_prompts(texts[:1], "salt"))
    # Nothing has to be named with --train_data: the folder knows.
    with one_line(SampleError, "1 of its prompts were trained on"):
        list(calibrate([folder], pairs, "data", score, targets={}))
    kept = [pair for pair in pairs if pair.prompt_text != texts[0]]
    list(calibrate([folder], kept, "data", score, targets={}))
    found = read_calibration(folder).prompts
    assert found is not None
    assert found.among(texts) == found.among(pair.prompt_text for pair in kept) != set()
    seen = count_seen(folder, texts)
    assert (seen.num_trained, seen.num_calibrated) == (1, seen.num_prompts - 1)
    # Both are handed on.
    export_model(folder, tmp_path / "out")
    assert count_seen(tmp_path / "out", texts) == seen
    facts = TrainingFacts(calibration_fraction=0.5, seed=0)
    chosen = held_out(pairs, "data", folder, facts)
    num, num_kept = (len({pair.prompt_text for pair in some}) for some in (pairs, chosen))
    told = describe_dropped(pairs, chosen, "m", facts)
    assert told.startswith(f"m: {num - num_kept} of {num} prompts are not used: a hash of its text says")
    assert describe_dropped(chosen, chosen, "m", facts) == ""


def test_a_merge_carries_the_hashes(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "cost", COST)
    write_trained_prompts(folder, hash_prompts(["a dog"], "salt"))
    export_model(folder, tmp_path / "out", merge=True)
    assert read_trained_prompts(tmp_path / "out") == hash_prompts(["a dog"], "salt")


def test_every_figure_that_is_in_sample_is_marked() -> None:
    figures = dimension_figures()
    calibrated = replace(figures.calibration, is_calibrated=True, temperature=2.0)
    evaluation = made_up_evaluation(
        {"helpfulness": replace(figures, calibration=calibrated), "harmlessness": figures},
        cost_sign=sign_figures(),
        models={"r": "", "c": ""},
    )
    seen = {
        "r": SeenPrompts(("reward",), 9, 0, 4),
        "c": SeenPrompts(("cost",), 9, 3, 9),
        "x": replace(SEEN, num_trained=9),
    }
    marks = mark_in_sample(evaluation, seen, ("x",))
    assert marks == {
        "helpfulness.calibration": "r was calibrated on 4 of 9 prompts",
        "harmlessness": "c was trained on 3 of 9 prompts",
        "cost_sign": "c was trained on 3 of 9 prompts",
    }
    table = format_table(replace(evaluation, in_sample=marks, seen_prompts=seen))
    rows = {line[:42].strip(): line[42:] for line in table.splitlines()}
    assert rows["accuracy [95% interval]"].split() == ["0.8100", "[0.790,", "0.830]", "0.8100", "[0.790,", "0.830]*"]
    assert rows["Brier score"].split() == ["0.1500*", "0.1500*"]
    assert rows["ECE of true probabilities, as many"].split() == ["0.0150,", "95%", "below", "0.0300*"] * 2
    assert "cost sign* on" in table
    gaps = {"harmlessness": control_gap(), "cost_sign": control_gap()}
    above = [line for line in format_table(replace(evaluation, in_sample=marks, control_gaps=gaps)).splitlines()
             if "above the strongest control" in line]  # fmt: skip
    assert [line.count("]*") for line in above] == [1, 1]
    assert list(describe_seen(seen))[1] == "c: in-sample, trained on 3 and calibrated on 9 of the 9 prompts"


def test_two_models_are_marked_and_say_why_they_have_no_interval() -> None:
    reason = "no interval: 9 prompts, fewer than 10"
    one = ComparisonFigures(0.8, 0.7, 0.1, None, 9.0, 6.0, 0.3, 0.3, 30, reason)
    marks = {"comparison.helpfulness": "other was trained on 3 of 9 prompts"}
    evaluation = made_up_evaluation(comparison={"helpfulness": one}, in_sample=marks)
    table = format_comparison({"helpfulness": one}, marks).splitlines()
    assert table[1].startswith("helpfulness* ")
    assert table[2] == f"helpfulness: {reason}"
    tables = report_tables(ReportData(evaluation, {}, (), (), (), None))
    assert tables.comparison is not None
    assert tables.comparison.rows[0][0] == "Helpfulness*"
    assert tables.not_compared == {("interval", "9 prompts, fewer than 10"): ["helpfulness"]}


def test_a_generators_figures_are_marked() -> None:
    seen = {"r": SEEN, "c": SeenPrompts(("cost",), 9, 0, 0)}
    assert in_sample_heads(seen) == {"reward": "r was trained on 3 of 9 prompts"}
    fields: dict[str, Any] = {"generators": {}, "comparison": None, "num_prompts": 9, "num_prompts_without_type": 0,
                              "num_prompts_without_labels": 0, "lagrange_multiplier": 1.0, "cost_limit": 0.0,
                              "multiplier_source": "given", "weighed": "cost"}  # fmt: skip
    told = format_generators(GeneratorEvaluation(**fields, seen_prompts=seen, in_sample=in_sample_heads(seen)))
    assert told == "* r: in-sample, trained on 3 of the 9 prompts"
    marks = in_sample_multiplier({"r": SEEN, "c": SeenPrompts(("cost",), 9, 0, 4)})
    assert marks == {"lagrange_multiplier": "c was calibrated on 4 of 9 prompts"}
    duel = Duel("a", "b", DuelFigures(9, None, None, "9 prompts"), {}, {})
    told = format_generators(GeneratorEvaluation(**{**fields, "comparison": duel}, in_sample=marks))
    assert "at lambda 1*" in told
    assert "more helpful*" not in told


def test_a_graded_label_is_marked_in_the_report() -> None:
    graded = OrdinalFigures(4, 0.5, (0.2, 0.8), 0.1, None, ((1, 0, 0, 0),) * 4)
    moderation = ModerationFigures({}, MacroFigures(None, 0, None, 0, None, 0), {"severity": graded})
    for marks, note in (({}, ""), ({"moderation.severity": "s was trained on 3 of 9 prompts"}, "in-sample")):
        evaluation = made_up_evaluation(moderation=moderation, in_sample=marks)
        assert report_tables(ReportData(evaluation, {}, (), (), (), None)).graded["severity"].note == note
