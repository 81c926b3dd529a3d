"""Calibration: prompts that no training reads, temperatures in a model folder, and what a scorer makes of them."""

import json
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Record
from small_models import COST, REWARD, noise_video, one_line, share_loaded, write_model, write_reward_and_cost

from safe_rlhf_video.calibration.calibrate import CalibratedMultiplier, calibrate
from safe_rlhf_video.calibration.fit import (
    calibrate_head,
    calibrate_label,
    describe_reference,
    keep_earlier,
)
from safe_rlhf_video.calibration.held_out import held_out
from safe_rlhf_video.calibration.multiplier_calibration import (
    Candidates,
    Limit,
    StoredMultiplier,
    calibrate_multiplier,
    group_candidates,
)
from safe_rlhf_video.calibration.store import Calibration, MultiplierCalibration, read_calibration, write_calibration
from safe_rlhf_video.data.datasets import PairDataset
from safe_rlhf_video.data.preferences import is_for_calibration, normalise_prompt
from safe_rlhf_video.data.records import VIDEO_NAMES, VideoSample
from safe_rlhf_video.errors import CheckpointError, ConfigError, SampleError
from safe_rlhf_video.lagrangian import confident_multiplier
from safe_rlhf_video.models.fingerprints import fingerprint_trained
from safe_rlhf_video.models.record import TrainingFacts
from safe_rlhf_video.scoring.decisions import PairScore, TradeOff, judge_pair, resolve_trade_off
from safe_rlhf_video.scoring.scorer import Scorer, score_pair
from safe_rlhf_video.stats.probabilities import fit_temperature
from safe_rlhf_video.stats.thresholds import Target
from safe_rlhf_video.training.config import DataConfig, TrainConfig
from safe_rlhf_video.training.data import TrainingData, load_data


def load(world: Path, **fields: float) -> TrainingData:
    data = DataConfig(path=str(world / "config-train.json.gz"), **fields)  # type: ignore[arg-type]
    return load_data(TrainConfig(out="-", data=data), ["reward"])


def prompts(groups: list) -> set[str]:
    return {normalise_prompt(group.prompt_text) for group in groups}


def test_calibration_prompts_are_in_no_split_and_leave_validation_as_it_was(world: Path) -> None:
    before, after = load(world, validation_fraction=0.3), load(world, validation_fraction=0.3, calibration_fraction=0.3)
    held_out = {
        normalise_prompt(pair.prompt_text)
        for pair in PairDataset.load(world / "config-train.json.gz").pairs
        if is_for_calibration(f" {pair.prompt_text.upper()} ", 0.3, seed=0)
    }
    assert held_out
    assert prompts(after.validation) == prompts(before.validation)
    assert prompts(after.train) == prompts(before.train) - held_out
    assert not held_out & prompts(after.validation)
    assert any("held out for calibration" in note for note in after.notes)
    assert before.fingerprint != after.fingerprint
    # Without a calibration split nothing moves.
    none = load(world, validation_fraction=0.3, calibration_fraction=0.0)
    assert (none.fingerprint, none.notes) == (before.fingerprint, before.notes)


def test_calibration_split_takes_its_share_and_must_leave_some(world: Path) -> None:
    share = np.mean([is_for_calibration(f"prompt {number}", 0.2, seed=1) for number in range(4000)])
    assert share == pytest.approx(0.2, abs=0.02)
    assert not any(is_for_calibration(f"prompt {number}", 0.0, seed=1) for number in range(100))
    with one_line(SampleError, "data.calibration_fraction"):
        load(world, validation_fraction=0.0, calibration_fraction=1e-9)
    with one_line(ConfigError, "data.calibration_fraction"):
        DataConfig(path="x", validation_fraction=0.5, calibration_fraction=0.5)


HEADS = {
    "reward": calibrate_head(np.tile([3.0, 3.0, -3.0], 20), np.zeros(60), np.arange(60) // 3, np.linspace(-2, 2, 301)),
    "cost": calibrate_head(np.tile([3.0, 3.0, 3.0, -3.0], 10), np.zeros(40), np.arange(40) // 4, [0.0, 1.0]),
}


LABEL = calibrate_label(
    np.arange(200.0), np.arange(200) % 50 > 20, np.arange(200) // 2, Target("false_positive_rate", 0.1)
)


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    return write_model(tmp_path / "reward", REWARD), write_model(tmp_path / "cost", COST)


def test_calibration_of_a_head_and_its_file_by_hand(folders: tuple[Path, Path]) -> None:
    margin = np.array([2.0] * 30 + [-2.0] * 10 + [0.1, -0.2, 5.0])
    one = calibrate_head(margin, np.arange(43) >= 40, np.arange(43) % 12, [3.0, 1.0, 2.0])
    assert one.temperature == one.fitted == pytest.approx(2.0 / np.log(3.0))
    assert (one.num_comparisons, one.num_prompts, one.reason) == (40, 12, None)
    assert one.tie_threshold == 0.2
    assert one.log_loss is not None
    assert one.log_loss_before is not None
    assert one.log_loss == pytest.approx(-(0.75 * np.log(0.75) + 0.25 * np.log(0.25)))
    assert one.log_loss < one.log_loss_before
    assert one.reference is not None
    assert (one.reference.mean, one.reference.std, one.reference.quantiles[50]) == (2.0, 1.0, 2.0)
    few = calibrate_head(margin[:20], np.zeros(20), np.arange(20), [])
    assert few.temperature is None
    assert few.reference is None
    assert few.reason == "20 comparisons, fewer than 30"
    assert LABEL.reason is None
    nothing = calibrate_label([1.0], [True], ["p"], Target("recall", 0.9))
    heads = Calibration(
        {"reward": one, "aesthetics": few}, {"harm_any": LABEL, "harm_crime": nothing}, {"data": "x", "num_prompts": 3}
    )
    assert read_calibration(folders[0]) == Calibration({}, {})
    assert write_calibration(folders[0], heads).name == "calibration.json"
    assert read_calibration(folders[0]) == heads


def test_what_new_data_say_nothing_of_is_kept() -> None:
    nothing = calibrate_head([], [], [], [0.5, 1.0])
    unlabelled = calibrate_label([], [], [], Target("recall", 0.9))
    earlier = Calibration(HEADS, {"harm_any": LABEL, "harm_crime": LABEL}, {"data": "pairs.json"})
    new = Calibration({"reward": nothing, "cost": HEADS["cost"]}, {"harm_any": LABEL, "harm_crime": unlabelled}, {})
    found, kept = keep_earlier(new, earlier)
    assert kept == ["reward", "harm_crime"]
    assert found.heads == HEADS
    assert found.labels == earlier.labels
    assert found.data == {"kept": {"heads": kept, "data": "pairs.json"}}
    # Of a head that the new data do speak of, the new is told, even that it cannot be fitted.
    few = calibrate_head([1.0, -1.0], np.zeros(2), ["a", "b"], [])
    assert keep_earlier(Calibration({"reward": few}, {}), earlier) == (Calibration({"reward": few}, {}), [])


def test_percentiles_by_counting() -> None:
    scores = np.random.default_rng(0).normal(size=5001)
    reference = describe_reference(scores)
    assert reference is not None
    for score in (-1.5, -1.0, 0.0, 0.3, 1.5):
        assert reference.percentile(score) == pytest.approx(100 * np.mean(scores < score), abs=0.3)
    assert reference.percentile(scores.min() - 1) == 0.0
    assert reference.percentile(scores.max() + 1) == 100.0
    grid = [reference.percentile(score) for score in np.linspace(-4, 4, 999)]
    assert grid == sorted(grid)
    # A score that four fifths share stands in their middle.
    shared = describe_reference([0.0] * 80 + [1.0] * 20)
    assert shared is not None
    assert shared.percentile(0.0) == pytest.approx(40.0, abs=1.0)
    assert shared.percentile(1.0) == pytest.approx(90.0, abs=1.0)


def test_scorer_reads_calibrations_and_mirrors_exactly(folders: tuple[Path, Path]) -> None:
    videos = [noise_video(4, 32, 32, seed) for seed in range(2)]

    def judge(**options: bool) -> PairScore:
        return score_pair("a red circle", *videos, model=list(folders), **options)

    before = judge()
    assert not before.calibrated
    assert before.percentiles is None
    write_calibration(folders[0], Calibration({"reward": HEADS["reward"]}, {}))
    half = judge()
    assert not half.calibrated
    assert (half.p_more_helpful, half.p_safer) == (before.p_more_helpful, before.p_safer)
    assert half.percentiles is not None
    assert set(half.percentiles) == {"reward"}
    write_calibration(folders[1], Calibration({"cost": HEADS["cost"]}, {}))
    after = judge()
    assert after.calibrated
    assert (after.rewards, after.costs, after.preferred) == (before.rewards, before.costs, before.preferred)
    for probability, margin, head in (
        (after.p_more_helpful, after.rewards[0] - after.rewards[1], "reward"),
        (after.p_safer, after.costs[1] - after.costs[0], "cost"),
    ):
        assert probability == pytest.approx(1 / (1 + np.exp(-margin / HEADS[head].temperature)), rel=1e-12)
    assert after.percentiles is not None
    assert set(after.percentiles) == {"reward", "cost"}
    assert judge(calibrated=False) == before
    scorer = Scorer.from_pretrained(*folders, device="cpu")
    turned = scorer.score_pair("a red circle", *videos[::-1])
    scorer.close()
    assert (turned.p_more_helpful, turned.p_safer) == (1.0 - after.p_more_helpful, 1.0 - after.p_safer)
    assert turned.percentiles == {head: pair[::-1] for head, pair in after.percentiles.items()}


def test_head_without_a_temperature_is_not_calibrated() -> None:
    scores = {"reward": (1.0, 0.0), "cost": (0.0, 2.0)}
    without = {**HEADS, "cost": replace(HEADS["cost"], temperature=None, reason="few")}
    assert judge_pair(scores, calibrations=HEADS).calibrated
    judged = judge_pair(scores, calibrations=without)
    assert not judged.calibrated
    assert judged.p_more_helpful == judge_pair(scores).p_more_helpful
    json.dumps(judged.to_dict(), allow_nan=False)


MULTIPLIER = calibrate_multiplier(
    Candidates([[0.0, 1.0]] * 60, [[0.0, 1.0]] * 60, [[0, 0]] * 60),
    {"reward": "a", "cost": "b"},
    Limit(harm_rate=0.1),
)


@pytest.mark.parametrize(
    "damage",
    [
        lambda fields: fields.update(format_version=2),
        lambda fields: fields.update(weights="0" * 32),
        lambda fields: fields.update(weights=7),
        lambda fields: fields.update(weights=None),
        lambda fields: fields.pop("heads"),
        lambda fields: fields["heads"].update(charm=fields["heads"]["reward"]),
        lambda fields: fields["heads"]["reward"].update(temperature=0.0),
        lambda fields: fields["heads"]["reward"].update(temperature="1"),
        lambda fields: fields["heads"]["reward"].update(temperature=None),
        lambda fields: fields["heads"]["reward"].update(temperature=10**400),
        lambda fields: fields["heads"]["reward"].update(num_comparisons=-1),
        lambda fields: fields["heads"]["reward"]["reference"].update(std=-1.0),
        lambda fields: fields["heads"]["reward"]["reference"].update(num=0),
        lambda fields: fields["heads"]["reward"]["reference"].update(mean=None),
        lambda fields: fields["heads"]["reward"].update(reason=3),
        lambda fields: fields["heads"]["reward"].update(slope=1.0),
        lambda fields: fields["heads"]["reward"]["reference"]["quantiles"].reverse(),
        lambda fields: fields["heads"]["reward"]["reference"]["quantiles"].pop(),
        lambda fields: fields.pop("labels"),
        lambda fields: fields["labels"].update(reward=fields["labels"]["harm_any"]),
        lambda fields: fields["labels"]["harm_any"]["target"].update(kind="precision"),
        lambda fields: fields["labels"]["harm_any"]["target"].update(value=1.0),
        lambda fields: fields["labels"]["harm_any"]["threshold"].update(logit="0"),
        lambda fields: fields["labels"]["harm_any"].update(threshold=None),
        lambda fields: fields["labels"]["harm_any"].update(slope=None),
        lambda fields: fields["multiplier"]["multipliers"][0].update(lagrange_multiplier=-1.0),
        lambda fields: fields["multiplier"]["multipliers"][0].update(lagrange_multiplier=None, reason="few"),
        lambda fields: fields["multiplier"]["multipliers"][0].update(reason="few"),
        lambda fields: fields["multiplier"].update(constraint="probability"),
        lambda fields: fields["multiplier"]["multipliers"].append(fields["multiplier"]["multipliers"][0]),
        lambda fields: fields["multiplier"]["models"].pop("cost"),
        lambda fields: fields["multiplier"]["models"].update(cost=7),
        lambda fields: fields["multiplier"]["models"].update(cost={"cost": "b"}),
        lambda fields: fields["multiplier"]["multipliers"][0].update(num_candidates=[2, 3, 4]),
        lambda fields: fields["multiplier"].update(confidence=1.0),
        lambda fields: fields["multiplier"].pop("limit"),
        lambda fields: fields["multiplier"].update(scale=2.0),
        None,
    ],
)
def test_stale_or_damaged_calibration_says_to_calibrate_again(
    folders: tuple[Path, Path], damage: Callable[[dict[str, Any]], Any] | None
) -> None:
    path = write_calibration(
        folders[0], Calibration({"reward": HEADS["reward"]}, {"harm_any": LABEL}, multiplier=MULTIPLIER)
    )
    if damage is None:
        path.write_bytes(path.read_bytes()[:-40])
    else:
        fields = json.loads(path.read_text())
        damage(fields)
        path.write_text(json.dumps(fields))
    with one_line(CheckpointError, "calibration.json", "run scripts/calibrate.py again"):
        Scorer.from_pretrained(folders[0], device="cpu")


def test_weights_trained_anew_make_a_calibration_stale(folders: tuple[Path, Path], tmp_path: Path) -> None:
    write_calibration(folders[0], Calibration({"reward": HEADS["reward"]}, {}))
    other = write_model(tmp_path / "other", REWARD, seed=5)
    (folders[0] / "heads.safetensors").write_bytes((other / "heads.safetensors").read_bytes())
    with one_line(CheckpointError, "other weights", "run scripts/calibrate.py again"):
        read_calibration(folders[0])


def test_only_prompts_that_training_left_alone_are_used(world: Path) -> None:
    train, test = (PairDataset.load(world / f"config-{split}.json.gz").pairs for split in ("train", "test"))
    facts = TrainingFacts(calibration_fraction=0.3, seed=0)
    kept = held_out(train, "train", "m", facts)
    used = load(world, validation_fraction=0.3, calibration_fraction=0.3)
    assert {normalise_prompt(pair.prompt_text) for pair in kept} == {
        normalise_prompt(pair.prompt_text) for pair in train
    } - prompts(used.train) - prompts(used.validation)
    with one_line(SampleError, "data.calibration_fraction", "give the file that it was trained on"):
        held_out([pair for pair in train if pair not in kept], "train", "m", facts)
    # Models that were trained without such a split.
    without, texts = TrainingFacts(), [pair.prompt_text for pair in train]
    assert held_out(test, "test", "m", without, texts) == test
    with one_line(SampleError, "--train_data"):
        held_out(test, "test", "m", without)
    with one_line(SampleError, "1 of its prompts were trained on", train[0].prompt_text[:20]):
        held_out([*test, train[0]], "test", "m", without, texts)


def test_calibrate_command(
    world: Path,
    folders: tuple[Path, Path],
    edited_world: Callable[[Callable[[list[Record]], None]], Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    share_loaded(monkeypatch)
    for folder in folders:
        fields = json.loads((folder / "model.json").read_text())
        fields["training"] |= {"calibration_fraction": 0.9, "seed": 3}
        (folder / "model.json").write_text(json.dumps(fields))
    expected: dict[str, list[tuple[float, str]]] = {"helpfulness": [], "harmlessness": []}
    names: set[tuple[str, str]] = set()

    def label_by_the_models(records: list[Record]) -> None:
        """As the untrained models would, but for every twentieth comparison: so there is something to fit."""
        clips = PairDataset.load(world / "config-train.json.gz")
        with Scorer.from_pretrained(*folders, device="cpu") as scorer:
            made = scorer.iterate([video.prompt_text for video in clips.videos], clips.video_files(clips.videos))
            scores = dict(zip((video.name for video in clips.videos), made, strict=True))
        for number, record in enumerate(records):
            first, second = (scores[f"{record['prompt_id']}/{record[side]['video_id']}"] for side in VIDEO_NAMES)
            is_held_out = is_for_calibration(record["prompt_text"], 0.9, seed=3)
            if is_held_out:
                names.update((record["prompt_id"], record[side]["video_id"]) for side in VIDEO_NAMES)
            for dimension, margin in (
                ("helpfulness", first["reward"] - second["reward"]),
                ("harmlessness", second["cost"] - first["cost"]),
            ):
                is_right = number % 20 > 0
                record[dimension] = "video_0" if (margin > 0) == is_right else "video_1"
                if is_held_out:
                    expected[dimension].append((abs(margin) if is_right else -abs(margin), record["prompt_text"]))

    data = edited_world(label_by_the_models) / "config-train.json.gz"
    arguments = ["--model", *folders, "--data", data, "--video_dir", world / "videos"]
    monkeypatch.setattr(sys, "argv", ["calibrate.py", *map(str, arguments)])
    from safe_rlhf_video.commands.calibrate import main

    (folders[0] / "calibration.json").write_text("stale")
    main()
    for folder, head, dimension in zip(folders, ("reward", "cost"), expected, strict=True):
        fitted = read_calibration(folder).heads[head]
        again = fit_temperature(*zip(*expected[dimension], strict=True))
        assert fitted.temperature == fitted.fitted == pytest.approx(again.temperature, rel=1e-3)
        assert fitted.standard_error == pytest.approx(again.standard_error, rel=1e-3)
        assert fitted.num_comparisons == len(expected[dimension])
        assert fitted.reference is not None
        assert fitted.reference.num == len(names)
    # The same again is the same, and a folder that cannot be calibrated keeps what it has.
    before = [(folder / "calibration.json").read_bytes() for folder in folders]
    (folders[1] / "model.json").write_text((folders[1] / "model.json").read_text().replace("0.9", "0.0"))
    with one_line(SampleError, "--train_data"):
        main()
    assert [(folder / "calibration.json").read_bytes() for folder in folders] == before


def test_candidates_are_the_labelled_clips_of_a_text(world: Path) -> None:
    clips = PairDataset.load(world / "config-train.json.gz").videos
    first, second = clips[0], next(clip for clip in clips if clip.prompt_id != clips[0].prompt_id)

    def clip(of: VideoSample, prompt_id: str, video_id: str, is_safe: bool | None) -> VideoSample:
        return replace(of, prompt_id=prompt_id, video_id=video_id, is_safe=is_safe)

    samples = [
        clip(first, "1", "a", True),
        clip(first, "1", "b", None),
        clip(replace(first, prompt_text=f" {first.prompt_text.upper()}"), "2", "a", False),
        clip(second, "3", "a", True),
        clip(second, "3", "b", None),
    ]
    scores = {sample.name: float(number) for number, sample in enumerate(samples)}
    costs = {name: -score for name, score in scores.items()}
    labelled = group_candidates(samples, scores, costs, labelled=True)
    assert labelled.rewards == [[0.0, 2.0]]
    assert labelled.costs == [[-0.0, -2.0]]
    assert labelled.is_unsafe == [[0, 1]]
    assert (labelled.num_unlabelled, labelled.num_single) == (2, 1)
    every = group_candidates(samples, scores, costs, labelled=False)
    assert (every.rewards, every.num_unlabelled, every.num_single) == ([[0.0, 1.0, 2.0], [3.0, 4.0]], 0, 0)


def draw_candidates(numbers: Sequence[int], share_unsafe: float = 0.3) -> Candidates:
    """Prompts whose candidates are unsafe independently of each other; the cost tells it, the reward does not."""
    generator = np.random.default_rng(0)
    unsafe = [(generator.random(num) < share_unsafe).astype(int).tolist() for num in numbers]
    rewards = [generator.normal(size=num).tolist() for num in numbers]
    return Candidates(rewards, [[4.0 * one - 2.0 for one in row] for row in unsafe], unsafe)


def test_each_number_of_candidates_has_a_multiplier_of_its_own() -> None:
    """With 30% unsafe clips, both of a pair are unsafe in 9%: no lambda can keep 5% there, and of 5 almost any does."""
    candidates = draw_candidates([3, 4, 5, 5] * 250 + [7] * 9)
    found = calibrate_multiplier(candidates, {"reward": "a", "cost": "b"}, Limit(harm_rate=0.05))
    assert [one.num_candidates for one in found.multipliers] == [2, 3, 4, 5]  # too few prompts have 6 or 7
    assert [one.num_prompts for one in found.multipliers] == [1009, 1009, 759, 509]
    assert found.issued == (3, 4, 5)
    two, *others = (one.lagrange_multiplier for one in found.multipliers)
    assert two is None
    assert others == sorted(others, reverse=True)
    assert found.multipliers[0].reason is not None
    assert re.match(r"in [789]\.\d% of 1009 prompts all 2 candidates are unsafe", found.multipliers[0].reason)
    # Without a prompt that has more than n, nothing is drawn.
    alone = draw_candidates([5] * 500)
    (*_, five) = calibrate_multiplier(alone, {"reward": "a", "cost": "b"}, Limit(harm_rate=0.05)).multipliers
    risks = [[1 / (1 + np.exp(-cost)) for cost in row] for row in alone.costs]
    expected = confident_multiplier(alone.rewards, risks, alone.is_unsafe, harm_rate_limit=0.05)
    assert (five.lagrange_multiplier, five.num_prompts) == (expected.lagrange_multiplier, 500)
    with one_line(SampleError, "no multiplier for 2 candidates", "of 100 prompts all 2 candidates are unsafe"):
        calibrate_multiplier(draw_candidates([2] * 100, 0.5), {"reward": "a", "cost": "b"}, Limit(harm_rate=0.05))
    with one_line(SampleError, "9 prompts have two candidates"):
        calibrate_multiplier(draw_candidates([2] * 9), {"reward": "a", "cost": "b"}, Limit(harm_rate=0.9))


def test_a_limit_that_cannot_be_promised_is_refused_before_any_clip_is_scored() -> None:
    with one_line(ConfigError, "confidence must be between 0 and 1"):
        Limit(harm_rate=0.05, confidence=1.5)
    with one_line(ConfigError, "cost_limit must be below 10"):
        Limit(cost=10.0)


def test_a_multiplier_is_used_for_its_own_number_alone() -> None:
    found = calibrate_multiplier(draw_candidates([4] * 500), {"reward": "a", "cost": "b"}, Limit(harm_rate=0.05))
    stored = StoredMultiplier(found)
    four = resolve_trade_off(stored, 4)
    assert (four.lagrange_multiplier, four.weighed) == (found.multipliers[-1].lagrange_multiplier, "p_unsafe")
    for words in ("calibrated for best of 4, from 500 prompts", "a wrong multiplier is issued is at most 5%"):
        assert words in four.source
    # Nor for a choice among 2, which no multiplier makes safe enough, nor for what was never tested.
    for number, words in ((2, ": no multiplier was calibrated for 2 candidates: in "),
                          (5, ": no multiplier was calibrated for 5 candidates"),
                          (None, ": calibrated multipliers are for choosing"), (1, "")):  # fmt: skip
        other = resolve_trade_off(stored, number)
        assert (other.lagrange_multiplier, other.cost_limit, other.weighed) == (1.0, 0.0, "cost")
        assert other.source.startswith(f"the default{words}")
    assert resolve_trade_off(stored, 4, 2.0).source == "given"


def test_the_multiplier_of_these_two_models_is_taken_in_any_order(tmp_path: Path) -> None:
    reward, cost, other = (
        write_model(tmp_path / name, heads, seed=seed)
        for seed, (name, heads) in enumerate((("reward", REWARD), ("cost", COST), ("other", COST)), start=1)
    )

    def store(limit: float, second: Path, *folders: Path) -> MultiplierCalibration:
        models = {"reward": fingerprint_trained(reward), "cost": fingerprint_trained(second)}
        fitted = replace(MULTIPLIER, models=models, limit=limit)
        for folder in folders:
            write_calibration(folder, Calibration({}, {}, multiplier=fitted))
        return fitted

    def multiplier_of(*folders: Path) -> MultiplierCalibration | None:
        with Scorer.from_pretrained(*folders, device="cpu") as scorer:
            scorer.resolve_trade_off(2)
            return scorer.multiplier

    first = store(0.1, cost, reward, cost)
    second = store(0.2, other, reward, other)  # the reward's folder holds this one now
    for folders, expected in (((reward, cost), first), ((reward, other), second)):
        assert multiplier_of(*folders) == multiplier_of(*folders[::-1]) == expected
    # Two promises for the same two models: which one is meant, nothing tells.
    store(0.3, cost, reward)
    for folders in ((reward, cost), (cost, reward)):
        with one_line(CheckpointError, "two multipliers", "a limit", "lagrange_multiplier"):
            multiplier_of(*folders)


def test_candidates_are_what_the_reward_and_the_cost_held_out(world: Path, tmp_path: Path) -> None:
    """A further folder chooses nothing, so what its own training held out changes no candidate."""
    folders = [*write_reward_and_cost(tmp_path), write_model(tmp_path / "moderation", {"moderation": ("harm_any",)})]
    for folder, fraction in zip(folders, (0.9, 0.9, 0.3), strict=True):
        fields = json.loads((folder / "model.json").read_text())
        fields["training"] |= {"calibration_fraction": fraction, "seed": 3}
        (folder / "model.json").write_text(json.dumps(fields))
    pairs = PairDataset.load(world / "config-train.json.gz").pairs

    def score(_: Any, samples: Sequence[Any]) -> dict[str, dict[str, float]]:
        names = {video.name for pair in samples for video in (pair.video_0, pair.video_1)}
        return {name: {"reward": float(len(name)), "cost": 0.0} for name in names}

    limit = Limit(harm_rate=0.9, confidence=0.5)
    two, three = ([*calibrate(some, pairs, "data", score, limit=limit)][-1] for some in (folders[:2], folders))
    assert isinstance(two, CalibratedMultiplier)
    assert isinstance(three, CalibratedMultiplier)
    assert two.candidates == three.candidates
    assert len(two.candidates.rewards) > 10


def record_training(folders: Sequence[Path], **facts: Any) -> None:
    """Writes facts of their training into some model folders."""
    for folder in folders:
        fields = json.loads((folder / "model.json").read_text())
        fields["training"] |= facts
        (folder / "model.json").write_text(json.dumps(fields))


Rows = dict[str, dict[str, tuple[float, float, int]]]


def label_by_the_costs(
    edited_world: Callable[[Callable[[list[Record]], None]], Path], scores: dict[tuple[str, str], dict[str, float]]
) -> tuple[Path, Rows, list[str]]:
    """A world in which the costliest 30% of the clips are unsafe.

    Returns:
        Its file; of the prompts held out for calibration, prompt -> clip -> reward, cost and whether it is unsafe; and
        the clips that have no label.
    """
    threshold = float(np.quantile([row["cost"] for row in scores.values()], 0.7))
    rows: Rows = {}
    unlabelled: list[str] = []

    def label_by_the_cost(records: list[Record]) -> None:
        for number, record in enumerate(records):
            first, second = (scores[record["prompt_id"], record[side]["video_id"]]["cost"] for side in VIDEO_NAMES)
            record["harmlessness"] = f"video_{int((first > second) == (number % 4 > 0))}"
            for video in (record[side] for side in VIDEO_NAMES):
                row = scores[record["prompt_id"], video["video_id"]]
                video["is_safe"] = row["cost"] <= threshold
                if is_for_calibration(record["prompt_text"], 0.9, seed=3):
                    of_prompt = rows.setdefault(record["prompt_id"], {})
                    of_prompt[video["video_id"]] = row["reward"], row["cost"], int(row["cost"] > threshold)
        # One prompt has a single clip whose safety is known.
        alone, (kept, *others) = rows.popitem()
        unlabelled.extend(others)
        for video in (record[side] for record in records if record["prompt_id"] == alone for side in VIDEO_NAMES):
            if video["video_id"] != kept:
                video["is_safe"] = None

    return edited_world(label_by_the_cost) / "config-train.json.gz", rows, unlabelled


def check_multiplier_of_four(scorer: Scorer, multiplier: float, videos: Sequence[np.ndarray]) -> None:
    """A choice among 4 uses the multiplier and says so; one among 2 or 3 uses the default and says that."""
    judged = scorer.rank("a red circle", videos)
    assert (judged.lagrange_multiplier, judged.cost_limit) == (multiplier, 0.0)
    for words in ("calibrated for best of 4", "a harmful rate up to 0.25", "is issued is at most 20%"):
        assert words in judged.multiplier_source
    assert judged.multiplier_source in judged.explain()
    assert "a price on P(unsafe)" in judged.explain()
    risk = [1 / (1 + np.exp(-cost)) - 0.5 for cost in judged.costs]
    combined = [(r - multiplier * p) / (1 + multiplier) for r, p in zip(judged.rewards, risk, strict=True)]
    np.testing.assert_allclose(judged.lagrangian_scores, combined, rtol=1e-9)
    # No multiplier of 4 is used on 2, nor on 3.
    pair, three = scorer.score_pair("a red circle", *videos[:2]), scorer.rank("a red circle", videos[:3])
    for one, number in ((pair, 2), (three, 3)):
        assert (one.lagrange_multiplier, one.weighed) == (1.0, "cost")
        assert one.multiplier_source.startswith(f"the default: no multiplier was calibrated for {number}")
    best = scorer.best_of_n(["a red circle"] * 2, [videos[:3], videos])
    assert best.chosen == (three.order[0], judged.order[0])
    assert [one.source for one in best.trade_offs] == [three.multiplier_source, judged.multiplier_source]
    described = scorer.describe()
    assert (described["lagrange_multiplier"], described["multiplier_source"]) == (1.0, "the default")
    assert {number: one["lagrange_multiplier"] for number, one in described["multipliers"].items()} == {"4": multiplier}
    assert scorer.rank("a red circle", videos, lagrange_multiplier=0.5).multiplier_source == "given"


def test_multiplier_is_stored_and_becomes_the_default(
    world: Path,
    tmp_path: Path,
    edited_world: Callable[[Callable[[list[Record]], None]], Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    share_loaded(monkeypatch)
    folders = write_reward_and_cost(tmp_path)
    record_training(folders, calibration_fraction=0.9, seed=3)
    clips = PairDataset.load(world / "config-train.json.gz")
    with Scorer.from_pretrained(*folders, device="cpu") as scorer:
        assert scorer.resolve_trade_off(2) == TradeOff(source="the default")
        made = scorer.iterate([video.prompt_text for video in clips.videos], clips.video_files(clips.videos))
        scores = {(v.prompt_id, v.video_id): row for v, row in zip(clips.videos, made, strict=True)}
    data, rows, unlabelled = label_by_the_costs(edited_world, scores)
    rewards, costs, unsafe = ([[one[at] for one in row.values()] for row in rows.values()] for at in range(3))
    models = {head: fingerprint_trained(folder) for head, folder in zip(("reward", "cost"), folders, strict=True)}
    candidates = Candidates(rewards, costs, unsafe)
    expected = calibrate_multiplier(candidates, models, Limit(harm_rate=0.25, confidence=0.8))
    assert expected.issued == (4,)
    multiplier = expected.multipliers[2].lagrange_multiplier
    assert multiplier

    from safe_rlhf_video.commands.calibrate import main

    def calibrate(*arguments: object, model: Sequence[Path] = folders) -> None:
        words = ["calibrate.py", "--model", *model, "--data", data, "--video_dir", world / "videos", *arguments]
        monkeypatch.setattr(sys, "argv", list(map(str, words)))
        main()

    capsys.readouterr()
    calibrate("--harm_rate_limit", 0.25, "--confidence", 0.8)
    told = capsys.readouterr().out
    assert f"lambda: {len(unlabelled)} clips without a safety label are no candidates\n" in told
    assert "lambda: 1 prompts with a single candidate are left out\n" in told
    for folder in folders:
        assert read_calibration(folder).multiplier == expected
    calibrate()  # temperatures anew; the multiplier is not lost
    videos = [noise_video(4, 32, 32, seed) for seed in range(4)]
    with Scorer.from_pretrained(*folders, device="cpu") as scorer:
        assert scorer.multiplier == expected
        check_multiplier_of_four(scorer, multiplier, videos)
        dataset = PairDataset.load(data, video_dir=world / "videos")
        fitted = scorer.calibrate_multiplier(dataset, harm_rate_limit=0.6)  # in Python the same
        assert fitted == calibrate_multiplier(candidates, models, Limit(harm_rate=0.6)) == scorer.multiplier
        with one_line(SampleError, "cannot promise a mean cost up to 0.5"):
            scorer.calibrate_multiplier(dataset, cost_limit=0.5)  # fewer than 30 prompts
    assert read_calibration(folders[0]).multiplier == fitted
    # With another cost model it means nothing, and is not silently put aside.
    other = write_model(tmp_path / "other", COST, seed=9)
    with Scorer.from_pretrained(folders[0], other, device="cpu") as scorer:
        with one_line(CheckpointError, "another cost model", "lagrange_multiplier"):
            scorer.score_pair("a red circle", *videos[:2])
        assert scorer.score_pair("a red circle", *videos[:2], lagrange_multiplier=2).lagrange_multiplier == 2.0
        with one_line(SampleError, "calibration_fraction", f"prompts of {data};"):
            scorer.calibrate_multiplier(dataset, harm_rate_limit=0.6)
    for model in (folders[:1], (*folders, other)):
        with one_line(CheckpointError, "one reward and one cost"):
            calibrate("--cost_limit", 0, model=model)
