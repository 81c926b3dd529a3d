"""Evaluation figures against plain loops, controls against the truth, and the two commands on real clips."""

import gzip
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import Record, launch, read_records
from made_up_evaluations import control_gap, dimension_figures, made_up_evaluation, sign_figures
from small_models import COST, REWARD, SAMPLING, noise_video, one_line, write_model

from safe_rlhf_video.calibration.fit import fit_heads
from safe_rlhf_video.data.datasets import PairDataset
from safe_rlhf_video.data.preferences import number_prompts, safety_signs
from safe_rlhf_video.data.records import SUB_DIMENSIONS, PairSample, Preference, parse_pair
from safe_rlhf_video.errors import CheckpointError, ConfigError, SafeRLHFVideoError, SampleError
from safe_rlhf_video.evaluation.changed_inputs import ChangedFramesScorer, shuffle_prompts
from safe_rlhf_video.evaluation.compare import compare
from safe_rlhf_video.evaluation.evaluate import evaluate
from safe_rlhf_video.evaluation.judgements import read_judgements
from safe_rlhf_video.evaluation.results import Evaluation, evaluation_fields, read_evaluation
from safe_rlhf_video.evaluation.table import format_comparison, format_table
from safe_rlhf_video.files import lock
from safe_rlhf_video.models.config import BackboneConfig
from safe_rlhf_video.scoring.harms import Moderation
from safe_rlhf_video.scoring.score_files import score_to_file
from safe_rlhf_video.scoring.score_many import ScoreRequest
from safe_rlhf_video.scoring.scorer import Scorer
from safe_rlhf_video.video.sampling import Video
from safe_rlhf_video.worlds.truth import read_truth
from safe_rlhf_video.worlds.video_world import plan_split

Scores = dict[str, dict[str, float]]
Truth = dict[str, dict[str, float]]


@pytest.fixture(scope="module")
def planned() -> tuple[list[PairSample], list[PairSample], Truth]:
    """Training and test pairs of a world, and the hidden utilities of the test videos; no clip is drawn."""
    pairs: dict[str, list[PairSample]] = {}
    truth: Truth = {}
    for split in ("train", "test"):
        pairs[split] = []
        for records, _, true in plan_split(split, 1200, seed=3):
            pairs[split] += [parse_pair(record, "planned") for record in records]
            truth |= {
                name: {
                    "helpfulness": values["helpfulness"],
                    "harmlessness": -values["cost"],
                    **{dimension: values[dimension] for dimension in SUB_DIMENSIONS},
                }
                for name, values in true.items()
            }
    return pairs["train"], pairs["test"], truth


def scores_from(pairs: list[PairSample], truth: Truth, noise: float, seed: int = 0) -> Scores:
    rng = np.random.default_rng(seed)
    return {
        video.name: {
            "reward": truth[video.video_id]["helpfulness"] + noise * rng.normal(),
            "cost": -truth[video.video_id]["harmlessness"] + noise * rng.normal(),
        }
        for pair in pairs
        for video in (pair.video_0, pair.video_1)
    }


def test_figures_by_plain_loops(planned: tuple[list[PairSample], list[PairSample], Truth]) -> None:
    _, pairs, truth = planned
    scores = scores_from(pairs, truth, noise=1.5)
    result = evaluate(pairs, scores, truth=truth)
    for dimension, head, direction in (("helpfulness", "reward", 1), ("harmlessness", "cost", -1)):
        agreed = best = ordered = right = total_margin = 0.0
        for pair in pairs:
            sides = (pair.video_0, pair.video_1)
            preferred = pair.preferences[dimension]
            assert preferred is not None
            chosen, rejected = sides[preferred], sides[1 - preferred]
            margin = direction * (scores[chosen.name][head] - scores[rejected.name][head])
            true_margin = truth[chosen.video_id][dimension] - truth[rejected.video_id][dimension]
            agreed += margin > 0
            total_margin += margin
            best += 0.5 if true_margin == 0 else true_margin > 0
            ordered += true_margin != 0
            right += true_margin != 0 and margin * true_margin > 0
        figures = result.dimensions[dimension]
        assert figures.accuracy == pytest.approx(agreed / len(pairs))
        assert figures.ceiling == pytest.approx(best / len(pairs))
        assert figures.true_order_accuracy == pytest.approx(right / ordered)
        assert figures.fraction_of_ceiling == pytest.approx(agreed / best)
        assert figures.interval[0] < figures.accuracy < figures.interval[1]
        assert figures.num_comparisons == len(pairs)
        assert figures.tie_rate == 0.0
        assert figures.mean_margin == pytest.approx(total_margin / len(pairs))
    assert "hidden order" in format_table(result)


def test_perfect_scores_reach_the_ceiling_exactly(planned: tuple[list[PairSample], list[PairSample], Truth]) -> None:
    _, pairs, truth = planned
    result = evaluate(pairs, scores_from(pairs, truth, noise=0.0), truth=truth)
    for dimension in ("helpfulness", "harmlessness"):
        assert result.dimensions[dimension].accuracy == result.dimensions[dimension].ceiling
        assert result.dimensions[dimension].true_order_accuracy == 1.0
    assert result.cost_sign.balanced_accuracy == 1.0


def test_controls_are_what_the_truth_predicts(planned: tuple[list[PairSample], list[PairSample], Truth]) -> None:
    train_pairs, pairs, truth = planned
    scores = scores_from(pairs, truth, noise=1.0)
    noise = {
        key: {head: float(np.random.default_rng(i).normal()) for head in ("reward", "cost")}
        for i, key in enumerate(scores)
    }
    result = evaluate(pairs, scores, train_pairs=train_pairs, truth=truth, random_scores=noise)
    for name, figures in result.controls.items():
        for dimension in ("helpfulness", "harmlessness"):
            if dimension not in figures:
                continue
            standard_error = 0.5 / np.sqrt(len(pairs))
            assert abs(figures[dimension] - result.controls_expected[name][dimension]) < 4 * standard_error, name
    assert result.controls["prompt_only"]["helpfulness"] == 0.5
    assert 0.55 < result.controls["generator_only"]["helpfulness"] < 0.75
    assert 0.6 < result.controls["is_safe_only"]["harmlessness"] < 0.75
    assert abs(result.controls["random_backbone"]["helpfulness"] - 0.5) < 0.06
    assert result.controls["prompt_only"]["cost_sign"] > 0.5


def made_up_pair(number: int, prompt: str, label: int, safe: tuple[bool, bool]) -> PairSample:
    """A comparison of a clip of generator "a" and one of "b" that prefers clip `label`."""
    both = {"prompt_id": f"p{number // 2}", "prompt_text": prompt}
    videos = {
        f"video_{side}": {**both, "video_id": f"v{number}{side}", "video_path": "x.mp4", "is_safe": safe[side],
                          "generated_from": "ab"[side]}
        for side in (0, 1)
    }  # fmt: skip
    record = {"pair_id": str(number), **both, "prompt_type": None, **videos}
    return parse_pair({**record, "helpfulness": f"video_{label}", "harmlessness": None}, "made up")


def test_controls_of_the_sign_are_cut_at_the_share_of_unsafe_clips_in_training() -> None:
    # Of the clips of "bold" prompts 40% are unsafe, of "calm" ones 10%: no prompt is likelier unsafe than safe, yet
    # the word finds 2 of 3 unsafe clips in half of all prompts, with 0.4 x 0.6 + 0.6 x 0.9 = 0.64 of the safe ones.
    def draw(seed: int, num: int) -> list[PairSample]:
        rng = np.random.default_rng(seed)
        rows = []
        for number in range(num):
            is_bold = number // 2 % 2 == 0
            unsafe = rng.random(2) < (0.4 if is_bold else 0.1)
            rows.append(made_up_pair(number, "bold" if is_bold else "calm", 0, (not unsafe[0], not unsafe[1])))
        return rows

    train, test = draw(0, 600), draw(1, 600)
    scores = {
        video.name: {"cost": 0.1 * row} for row, pair in enumerate(test) for video in (pair.video_0, pair.video_1)
    }
    result = evaluate(test, scores, train_pairs=train)
    figures = result.controls["prompt_only"]
    bold = np.array([pair.prompt_text == "bold" for pair in test for _ in range(2)])
    unsafe = np.array([not video.is_safe for pair in test for video in (pair.video_0, pair.video_1)])
    balanced = (bold[unsafe].mean() + (~bold)[~unsafe].mean()) / 2
    assert figures["cost_sign"] == pytest.approx(balanced)
    assert figures["cost_sign"] > 0.65
    assert figures["cost_sign_auroc"] == pytest.approx(balanced)  # two answers alone
    # Test labels move nothing: the cut is that of training.
    few = [replace(pair, video_0=replace(pair.video_0, is_safe=True)) for pair in test]
    assert evaluate(few, scores, train_pairs=train).controls["prompt_only"]["cost_sign"] > 0.6
    # Without training labels nobody knows where to cut.
    blind = evaluate(test, scores, random_scores=scores).controls["random_backbone"]
    assert blind["cost_sign"] is None
    assert blind["cost_sign_auroc"] == pytest.approx(evaluate(test, scores).cost_sign.auroc)


def test_a_model_below_its_strongest_control_is_told_so() -> None:
    rng = np.random.default_rng(0)
    train, test = (
        [made_up_pair(number, f"{name} {number // 2}", int(rng.random() > 0.9), (True, True)) for number in range(400)]
        for name in ("train", "test")
    )

    def judge(chance: float, pairs: list[PairSample] = test) -> Evaluation:
        """A model that agrees with this share of the labels."""
        scores = {}
        for pair in pairs:
            is_right = rng.random() < chance
            for side, video in enumerate((pair.video_0, pair.video_1)):
                scores[video.name] = {"reward": float((side == pair.preferences["helpfulness"]) == is_right)}
        return evaluate(pairs, scores, train_pairs=train)

    bad = judge(0.73)
    gap = bad.control_gaps["helpfulness"]
    assert (gap.standing, gap.control) == ("below", "generator_only")
    assert gap.own_figure == bad.dimensions["helpfulness"].accuracy
    assert gap.control_figure == bad.controls["generator_only"]["helpfulness"] > 0.85
    assert gap.difference == pytest.approx(gap.own_figure - gap.control_figure)
    assert gap.interval[0] < gap.difference < gap.interval[1] < 0
    assert "helpfulness: this model is below a control that cannot judge the video (which generator" in format_table(
        bad
    )
    assert judge(0.9).control_gaps["helpfulness"].standing == "not clearly above"
    assert "is not clearly above a control" in format_table(judge(0.9))
    good = judge(1.0)
    assert good.control_gaps["helpfulness"].standing == "above"
    assert "cannot judge the video" not in format_table(good)


def test_a_few_unsafe_clips_set_no_model_above_a_control() -> None:
    def judge(num_unsafe: int) -> Evaluation:
        """A model that is always right against words that say nothing."""
        train, test = (
            [made_up_pair(2 * row, f"{name} {row}", 0, (row >= few, True)) for row in range(60)]
            for name, few in (("train", 30), ("test", num_unsafe))
        )
        scores = {
            video.name: {"cost": -1.0 if video.is_safe else 1.0}
            for pair in test
            for video in (pair.video_0, pair.video_1)
        }
        return evaluate(test, scores, train_pairs=train)

    for figure in ("cost_sign", "cost_sign_auroc"):
        few, enough = judge(9).control_gaps[figure], judge(10).control_gaps[figure]
        assert (few.interval, few.standing, few.own_figure) == (None, "not clearly above", 1.0)
        assert "difference +0.5000, with too few prompts for an interval" in format_table(judge(9))
        assert enough.interval[0] > 0
        assert enough.standing == "above"


def test_a_truth_that_orders_nothing_or_all_the_other_way_has_no_figure_beside_it() -> None:
    pairs = [made_up_pair(2 * row, f"prompt {row}", 0, (True, True)) for row in range(30)]
    videos = [video for pair in pairs for video in (pair.video_0, pair.video_1)]
    scores = {video.name: {"reward": 0.0} for video in videos}
    for utility_0, ceiling in ((0.0, 0.5), (-1.0, 0.0)):
        truth = {
            video.video_id: {"helpfulness": utility_0 * (place % 2 == 0), "harmlessness": 0.0}
            for place, video in enumerate(videos)
        }
        result = evaluate(pairs, scores, truth=truth)
        figures = result.dimensions["helpfulness"]
        assert figures.ceiling == ceiling
        assert (figures.true_order_accuracy is None) == (utility_0 == 0)
        assert (figures.fraction_of_ceiling is None) == (ceiling == 0)
        json.dumps(evaluation_fields(result), allow_nan=False)


def test_sub_dimensions_have_figures_and_controls_of_their_own(
    planned: tuple[list[PairSample], list[PairSample], Truth],
) -> None:
    train_pairs, pairs, truth = planned
    unlabelled = {pair.pair_id for pair in pairs[::3]}
    pairs = [
        replace(pair, preferences={**pair.preferences, "aesthetics": None}) if pair.pair_id in unlabelled else pair
        for pair in pairs
    ]
    scores = {
        key: {**row, "aesthetics": truth[key.split("/")[1]]["aesthetics"]}
        for key, row in scores_from(pairs, truth, noise=0.0).items()
    }
    result = evaluate(pairs, scores, train_pairs=train_pairs, truth=truth)
    assert result.dimensions["correctness"] is None
    figures = result.dimensions["aesthetics"]
    assert figures.num_comparisons == len(pairs) - len(unlabelled)
    assert figures.accuracy == figures.ceiling < 1.0
    assert "aesthetics" in result.controls["generator_only"]
    assert "correctness" not in result.controls["generator_only"]
    assert "\naesthetics " in format_table(result)


def test_what_cannot_be_had_is_null(planned: tuple[list[PairSample], list[PairSample], Truth]) -> None:
    _, pairs, truth = planned
    rewards = {key: {"reward": row["reward"]} for key, row in scores_from(pairs, truth, noise=1.0).items()}
    result = evaluate(pairs, rewards)
    assert result.dimensions["harmlessness"] is None
    assert result.cost_sign is None
    assert result.dimensions["helpfulness"].ceiling is None
    assert set(result.controls) == {"prompt_only", "is_safe_only"}
    # The cost's sign with one class, and with too few clips.
    scores = scores_from(pairs, truth, noise=1.0)
    safe = [pair for pair in pairs if pair.video_0.is_safe and pair.video_1.is_safe]
    alike = evaluate(safe, scores).cost_sign
    assert alike.balanced_accuracy is None
    assert alike.accuracy > 0.5
    assert alike.reason == "every clip is labelled safe"
    few = evaluate(pairs[:5], scores).cost_sign
    assert few.accuracy is few.balanced_accuracy is None
    assert "fewer than 30" in few.reason
    json.dumps(evaluation_fields(result), allow_nan=False)
    format_table(result)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    root = tmp_path_factory.mktemp("models")
    return write_model(root / "reward", REWARD), write_model(root / "cost", COST)


def test_interrupted_scoring_goes_on(world: Path, folders: tuple[Path, Path], tmp_path: Path) -> None:
    dataset = PairDataset.load(world / "config-test.json.gz")
    requests = [ScoreRequest(video.name, video.prompt_text, dataset.video_file(video)) for video in dataset.videos]
    scorer = Scorer.from_pretrained(*folders)
    whole = score_to_file(scorer, requests, tmp_path / "whole.jsonl", batch_size=4)
    lines = (tmp_path / "whole.jsonl").read_bytes().splitlines(keepends=True)
    cut = tmp_path / "cut.jsonl"
    for kept in (b"", lines[0][:9], lines[0], b"".join(lines[:6]) + lines[6][:-4]):
        cut.write_bytes(kept)
        again = score_to_file(scorer, requests, cut, batch_size=4)
        assert again.keys() == whole.keys()
        for key, values in whole.items():
            assert again[key] == pytest.approx(values, abs=1e-5)
        assert len(cut.read_text().splitlines()) == len(requests) + 1
    with pytest.raises(CheckpointError, match="another model or of other clips"):
        score_to_file(scorer, requests[1:], cut)
    # Another clip under the name of one.
    other = tmp_path / "other.mp4"
    other.hardlink_to(requests[0].response)
    named = [replace(requests[0], response=other)]
    score_to_file(scorer, named, tmp_path / "one.jsonl")
    other.unlink()
    other.write_bytes(max((request.response.read_bytes() for request in requests), key=len) + b"\0" * 8)
    with pytest.raises(CheckpointError, match="another model or of other clips"):
        score_to_file(scorer, named, tmp_path / "one.jsonl")
    # A file that is not ours stays as it is, its last line too.
    for foreign in (b"my notes\nand more", b"one line", b'{"a": 1}\n{"b"', b"\xff\xfe\n", lines[0] + b"[1]\n"):
        cut.write_bytes(foreign)
        with pytest.raises(CheckpointError, match="give another --out"):
            score_to_file(scorer, requests, cut)
        assert cut.read_bytes() == foreign
    with pytest.raises(CheckpointError, match="cannot be written"):
        score_to_file(scorer, requests, tmp_path)
    with cut.open("a") as held:
        lock(held, cut)
        with pytest.raises(ConfigError, match=r"cut\.jsonl: another process is writing it"):
            score_to_file(scorer, requests, cut)
    scorer.close()


def check_judgements(folder: Path, dataset: PairDataset) -> None:
    """What judgements.json says against the records and scores.jsonl; it belongs to one evaluation.json."""
    judgements = read_judgements(folder, read_evaluation(folder / "evaluation.json"))
    rows = [json.loads(line) for line in (folder / "scores.jsonl").read_text().splitlines()[1:]]
    scores = {row.pop("key"): row for row in rows}
    assert {clip.name: clip.scores for clip in judgements.clips} == scores
    for clip in judgements.clips:
        (video,) = (video for video in dataset.videos if video.name == clip.name)
        assert (clip.prompt_text, clip.generated_from) == (video.prompt_text, video.generated_from)
        assert clip.is_safe == video.is_safe
        assert clip.video_file == str(dataset.video_file(video))
        assert clip.labels["harm_crime"] == video.harm_labels["crime"]
    assert [one.pair_id for one in judgements.comparisons] == [pair.pair_id for pair in dataset.pairs]
    for one, pair in zip(judgements.comparisons, dataset.pairs, strict=True):
        first, second = (scores[name] for name in (one.video_0, one.video_1))
        assert one.preferences == {name: label for name, label in pair.preferences.items() if label is not None}
        assert one.margins["reward"] == first["reward"] - second["reward"]
        assert one.margins["cost"] == second["cost"] - first["cost"]
    whole = (folder / "judgements.json").read_bytes()
    evaluation = read_evaluation(folder / "evaluation.json")
    (folder / "judgements.json").write_bytes(whole.replace(b"true", b"null", 1))
    with one_line(SampleError, "judgements.json: was not written with the evaluation.json beside it"):
        read_judgements(folder, evaluation)
    (folder / "judgements.json").unlink()
    with one_line(SampleError, "judgements.json: cannot be read", "run scripts/evaluate.py again"):
        read_judgements(folder, evaluation)
    with one_line(SampleError, "judgements.json: cannot be read", "run scripts/evaluate.py again"):
        read_judgements(folder, replace(evaluation, judgements=None))  # of a release that had none
    (folder / "judgements.json").write_bytes(whole)


def test_evaluate_command(
    world: Path,
    edited_world: Callable[[Callable[[list[Record]], None]], Path],
    folders: tuple[Path, Path],
    tmp_path: Path,
) -> None:
    reward, cost = folders
    data = edited_world(lambda records: records.__delitem__(slice(32, None)))
    (data / "truth.json.gz").symlink_to(world / "truth.json.gz")
    untrained = BackboneConfig(initialization="random", random_seed=7)
    random = [
        write_model(tmp_path / f"random_{head}", heads, backbone=untrained, seed=seed)
        for seed, (head, heads) in enumerate((("reward", REWARD), ("cost", COST)), start=3)
    ]
    # A folder and the file's name in it do as well as the file.
    arguments = ("scripts/evaluate.py", "--model", reward, cost, "--out", tmp_path / "out", "--data", data,
                 "--video_dir", world / "videos",
                 "--config_filename", "config-train.json.gz", "--train_data", world / "config-train.json.gz",
                 "--controls", "shuffled_prompt", "reversed_frames", "single_frame", "--compare", *random,
                 "--random_backbone")  # fmt: skip
    before = {path: path.read_bytes() for folder in folders for path in folder.rglob("*") if path.is_file()}
    done = launch(*arguments, *random)
    assert {path: path.read_bytes() for folder in folders for path in folder.rglob("*") if path.is_file()} == before
    result = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    for dimension in ("helpfulness", "harmlessness"):
        assert {"accuracy", "interval", "ceiling", "true_order_accuracy", "num_comparisons", "tie_rate"} <= set(
            result[dimension]
        )
        assert result[dimension]["num_comparisons"] == 32
        assert result[dimension]["ceiling"] is not None
        assert result["controls"]["random_backbone"][dimension] is not None
    assert {"accuracy", "balanced_accuracy"} <= set(result["cost_sign"])
    changed = {"shuffled_prompt", "reversed_frames", "single_frame"}
    assert {"generator_only", "prompt_only", "is_safe_only", "random_backbone"} | changed == set(result["controls"])
    assert set(result["comparison"]) == {"helpfulness", "harmlessness"}
    assert "p by prompt" in done.stdout
    assert result["seconds"] > 0
    assert "accuracy against the hidden order" in done.stdout
    # The control's clips were scored by the control.
    own, control = (
        [json.loads(line) for line in (tmp_path / "out" / f"{name}.jsonl").read_text().splitlines()[1:]]
        for name in ("scores", "random_backbone_scores")
    )
    for row, other in zip(own, control, strict=True):
        assert row["key"] == other["key"]
        assert abs(row["reward"] - other["reward"]) > 1e-6
        assert abs(row["cost"] - other["cost"]) > 1e-6
    check_judgements(tmp_path / "out", PairDataset.load(data / "config-train.json.gz", video_dir=world / "videos"))
    refused = launch(*arguments, reward, cost, check=False)
    assert refused.returncode == 1
    assert "pretrained backbone and is no control" in refused.stderr


def test_score_command_on_a_config_and_on_lines(world: Path, folders: tuple[Path, Path], tmp_path: Path) -> None:
    arguments = ("scripts/score.py", "--model", *folders, "--lagrange_multiplier", 5)
    launch(*arguments, "--input", world / "config-test.json.gz", "--out", tmp_path / "a.jsonl")
    first = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    records = read_records(world, "test")
    assert [row["pair_id"] for row in first] == [record["pair_id"] for record in records]
    # Lines with paths relative to their file, and v1 and v2 exchanged.
    lines = tmp_path / "lines" / "pairs.jsonl"
    lines.parent.mkdir()
    (lines.parent / "videos").symlink_to(world / "videos")
    lines.write_text(
        "\n".join(
            json.dumps(
                {
                    "prompt": record["prompt_text"],
                    "v1": record["video_1"]["video_path"],
                    "v2": record["video_0"]["video_path"],
                }
            )
            for record in records
        )
    )
    launch(*arguments, "--input", lines, "--out", tmp_path / "b.jsonl")
    second = [json.loads(line) for line in (tmp_path / "b.jsonl").read_text().splitlines()]
    for one, other in zip(first, second, strict=True):
        assert one["rewards"] == pytest.approx(other["rewards"][::-1], abs=1e-5)
        assert one["lagrangian_scores"] == pytest.approx(other["lagrangian_scores"][::-1], abs=1e-5)
        assert one["lagrange_multiplier"] == 5
    scorer = Scorer.from_pretrained(*folders)
    direct = scorer.score_pair(first[0]["prompt"], first[0]["v1"], first[0]["v2"], lagrange_multiplier=5)
    scorer.close()
    assert direct.costs == pytest.approx(first[0]["costs"], abs=1e-5)
    assert scorer.record.sampling == SAMPLING


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ('{"prompt": "a", "v1": "x.mp4", "v2": "y.mp4"}', "x.mp4"),
        ('{"prompt": "a", "v1": "x.mp4"}', "row 0 field v2"),
        (
            '{"prompt": "a", "v1": "x.mp4", "v2": "y.mp4", "video_id": "7"}',
            "row 0 field video_id: is not the id of a pair",
        ),
        ("not json", "row 0"),
        ("", "holds no pair"),
    ],
)
def test_score_command_on_bad_input(folders: tuple[Path, Path], tmp_path: Path, lines: str, message: str) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_text(lines)
    done = launch("scripts/score.py", "--model", *folders, "--input", path, "--out", tmp_path / "o.jsonl", check=False)
    errors = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert done.returncode == 1
    assert len(errors) == 1
    assert message in errors[0]
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "o.jsonl").exists()


def test_score_command_never_writes_over_its_input(folders: tuple[Path, Path], tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_text('{"prompt": "a", "v1": "x.mp4", "v2": "y.mp4"}')
    done = launch("scripts/score.py", "--model", *folders, "--input", path, "--out", tmp_path / "." / "pairs.jsonl",
                  check=False)  # fmt: skip
    assert done.returncode == 1
    assert "both --input and --out" in done.stderr
    assert "x.mp4" in path.read_text()


def test_other_line_ends_in_a_prompt_end_no_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from safe_rlhf_video.scoring.input_rows import read_rows

    prompts = ["a\u2028b", "c\x85d"]
    rows = [json.dumps({"prompt": prompt, "v1": "x", "v2": "y"}, ensure_ascii=False) for prompt in prompts]
    (tmp_path / "pairs.jsonl").write_text("\r\n".join(rows) + "\n", encoding="utf-8")
    assert [row.prompt for row in read_rows(tmp_path / "pairs.jsonl")[0]] == prompts


@pytest.mark.parametrize("script", ["scripts/evaluate.py", "scripts/score.py", "scripts/calibrate.py",
                                    "benchmarks/check_quickstart.py"])  # fmt: skip
def test_wrong_arguments_are_one_line(script: str) -> None:
    done = launch(script, "--no_such", "1", check=False)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ")
    assert "Traceback" not in line


def test_safety_labels_without_preferences(planned: tuple[list[PairSample], list[PairSample], Truth]) -> None:
    train_pairs, pairs, truth = planned
    scores = scores_from(pairs, truth, noise=1.0)
    unlabelled = [replace(pair, preferences=dict.fromkeys(pair.preferences)) for pair in pairs]
    result = evaluate(unlabelled, scores, train_pairs=train_pairs, random_scores=scores)
    assert result.dimensions["helpfulness"] is None
    assert result.cost_sign.balanced_accuracy > 0.5
    assert set(result.controls) == set(result.controls_expected) == {"prompt_only", "random_backbone"}
    assert result.controls["random_backbone"]["cost_sign_auroc"] == result.cost_sign.auroc
    table = format_table(result)
    assert table.startswith("cost sign on")
    assert "random backbone" in table


def test_contradictory_safety_labels_are_unknown(planned: tuple[list[PairSample], list[PairSample], Truth]) -> None:
    _, pairs, truth = planned
    video = pairs[0].video_0
    turned = replace(pairs[0], pair_id="again", video_0=replace(video, is_safe=not video.is_safe))
    silent = replace(pairs[0], pair_id="silent", video_0=replace(video, is_safe=None))
    key = (video.prompt_id, video.video_id)
    for told in ([silent, pairs[0]], [pairs[0], silent]):
        assert safety_signs(told)[key] == (1 if video.is_safe else -1)
    scores = scores_from(pairs, truth, noise=1.0)
    sign = evaluate(pairs, scores).cost_sign
    known = sign.num_safe + sign.num_unsafe
    for doubted in ([*pairs, turned], [turned, *pairs]):
        assert safety_signs(doubted)[key] == 0
        sign = evaluate(doubted, scores).cost_sign
        assert sign.num_safe + sign.num_unsafe == known - 1


def test_prompts_also_in_training_are_counted(planned: tuple[list[PairSample], list[PairSample], Truth]) -> None:
    train_pairs, pairs, truth = planned
    scores = scores_from(pairs, truth, noise=1.0)
    assert evaluate(pairs, scores).num_prompts_also_in_training is None
    result = evaluate(pairs, scores, train_pairs=train_pairs)
    assert result.num_prompts_also_in_training == 0
    assert "training data too" not in format_table(result)
    shouted = replace(pairs[0], prompt_text=f"  {pairs[0].prompt_text.upper()} ")
    result = evaluate(pairs, scores, train_pairs=[*train_pairs, shouted, shouted])
    assert result.num_prompts_also_in_training == 1
    assert "1 of the prompts are in the training data too" in format_table(result)


@pytest.mark.parametrize("content", [b"", b"no gzip", *(gzip.compress(one, mtime=0) for one in (
                                     b"[]", b'{"videos": [1]}', b'{"videos": {"a": 1}}',
                                     b'{"videos": {"a": {"cost": 1%s, "helpfulness": 0}}}' % (b"0" * 400),
                                     b'{"videos": {"a": {"cost": 0, "helpfulness": NaN}}}')),
                                     b"corrupt"])  # fmt: skip
def test_damaged_truth_is_one_line(tmp_path: Path, content: bytes) -> None:
    if content == b"corrupt":
        whole = bytearray(gzip.compress(b'{"videos": {}}' * 50))
        whole[10] = 0xFF  # no block of deflate begins so
        content = bytes(whole)
    path = tmp_path / "truth.json.gz"
    path.write_bytes(content)
    with pytest.raises(SafeRLHFVideoError, match="cannot be read as the truth"):
        read_truth(path)


def quickstart_summary() -> dict:
    figures = dimension_figures(num_comparisons=3200, accuracy=0.80, ceiling=0.82, true_order_accuracy=0.97)
    chances = {"helpfulness": 0.5, "harmlessness": 0.5}
    evaluation = made_up_evaluation(
        {"helpfulness": figures, "harmlessness": figures},
        cost_sign=sign_figures(balanced_accuracy=0.98),
        controls={"random_backbone": {**chances, "cost_sign": 0.5}, "prompt_only": chances},
        controls_expected={"random_backbone": chances, "prompt_only": chances},
        control_gaps={name: control_gap() for name in ("helpfulness", "harmlessness", "cost_sign", "cost_sign_auroc")},
        seconds=400.0,
    )
    pair = {"prompt": "a", "lambda_0": {"preferred": "v1", "reason": "because"}, "lambda_5": {"preferred": "v2"}}
    return evaluation_fields(evaluation) | {"pair": pair}


def test_quickstart_figures_are_held_to_their_bounds(tmp_path: Path) -> None:
    path = tmp_path / "summary.json"
    path.write_text(json.dumps(quickstart_summary()))
    done = launch("benchmarks/check_quickstart.py", path)
    assert done.stdout.splitlines()
    assert all(line.startswith("ok ") for line in done.stdout.splitlines())
    bad = quickstart_summary()
    bad["helpfulness"]["true_order_accuracy"] = 0.9
    bad["pair"]["lambda_5"]["preferred"] = "v1"
    bad["controls"]["prompt_only"]["harmlessness"] = 0.54
    bad["control_gaps"]["cost_sign"]["standing"] = "not clearly above"
    path.write_text(json.dumps(bad))
    done = launch("benchmarks/check_quickstart.py", path, check=False)
    assert done.returncode == 1
    assert sum(line.startswith("FAILED ") for line in done.stdout.splitlines()) == 4
    path.write_text("{}")
    done = launch("benchmarks/check_quickstart.py", path, check=False)
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1


def test_truth_of_another_world_is_refused(planned: tuple[list[PairSample], list[PairSample], Truth]) -> None:
    _, pairs, truth = planned
    scores = scores_from(pairs, truth, noise=1.0)
    with pytest.raises(SafeRLHFVideoError, match="another world"):
        evaluate(pairs, scores, truth={})


def test_which_clip_is_called_video_0_changes_no_figure(
    planned: tuple[list[PairSample], list[PairSample], Truth],
) -> None:
    _, pairs, truth = planned
    scores = scores_from(pairs, truth, noise=0.5)
    turned = [
        replace(pair, video_0=pair.video_1, video_1=pair.video_0,
                preferences={name: {0: 1, 1: 0}.get(label, label) for name, label in pair.preferences.items()})
        if number % 3 == 0 else pair
        for number, pair in enumerate(pairs)
    ]  # fmt: skip
    plain, other = (evaluate(each, scores, truth=truth).dimensions for each in (pairs, turned))
    assert plain["helpfulness"] == other["helpfulness"]
    assert plain["harmlessness"] == other["harmlessness"]
    figures = plain["helpfulness"].calibration
    assert 0 < figures.perfect_ece < figures.perfect_ece_95
    assert all(one.predicted >= 0.5 for one in figures.bins)


def test_a_text_under_several_ids_is_one_prompt() -> None:
    rng = np.random.default_rng(0)
    by_id: list[PairSample] = []
    for number in range(240):
        text = f"a kite {number // 6}" if number % 4 < 2 else f" A  Kite {number // 6} "
        pair = made_up_pair(number, text, int(rng.integers(2)), (bool(rng.integers(2)), True))
        tie = replace(pair, preferences={"helpfulness": "tie"}) if number % 5 == 0 else pair
        by_id.append(tie)
    by_text = [
        replace(pair, prompt_id=(one := f"t{number // 6}"), video_0=replace(pair.video_0, prompt_id=one),
                video_1=replace(pair.video_1, prompt_id=one))
        for number, pair in enumerate(by_id)
    ]  # fmt: skip
    values = rng.normal(size=(240, 2, 2))
    results = []
    for pairs in (by_id, by_text):
        scores = {
            video.name: {"reward": values[row, side, 0], "cost": values[row, side, 1], "harm_crime": 0.0}
            for row, pair in enumerate(pairs)
            for side, video in enumerate((pair.video_0, pair.video_1))
        }
        moderations = {name: Moderation({"crime": 0.5}, ("crime",), (), {"crime": True}, {"crime": None})
                       for name in scores}  # fmt: skip
        results.append(evaluate(pairs, scores, train_pairs=by_text[:120], moderations=moderations))
    assert results[0] == results[1]
    figures = results[0].dimensions["helpfulness"]
    assert figures is not None
    assert (figures.num_prompts, figures.num_comparisons) == (40, 192)
    blank = [replace(pair, prompt_text=" ") for pair in by_id]
    assert len(np.unique(number_prompts(blank))) == 120


def test_calibration_block_by_plain_loops(planned: tuple[list[PairSample], list[PairSample], Truth]) -> None:
    _, pairs, truth = planned
    scores = {key: {"reward": 3 * row["reward"]} for key, row in scores_from(pairs, truth, noise=0.0).items()}
    plain = evaluate(pairs, scores, truth=truth).dimensions["helpfulness"].calibration
    assert not plain.is_calibrated
    assert plain.temperature is None
    heads = fit_heads(pairs, [], scores)
    assert heads["reward"].temperature == pytest.approx(3.0, rel=0.15)
    fitted = evaluate(pairs, scores, truth=truth, calibrations=heads).dimensions["helpfulness"].calibration
    assert fitted.is_calibrated
    assert fitted.ece < 0.03 < plain.ece
    assert fitted.mean_absolute_error < 0.02
    total = brier = 0.0
    for pair in pairs:
        first, second = (scores[video.name]["reward"] for video in (pair.video_0, pair.video_1))
        true = truth[pair.video_0.video_id]["helpfulness"] - truth[pair.video_1.video_id]["helpfulness"]
        predicted = 1 / (1 + np.exp(-(first - second)))
        total += abs(predicted - 1 / (1 + np.exp(-true)))
        brier += (predicted - (pair.preferences["helpfulness"] == 0)) ** 2
    assert plain.mean_absolute_error == pytest.approx(total / len(pairs))
    assert plain.brier == pytest.approx(brier / len(pairs))
    # Which video is called the first must not matter.
    turned = [
        replace(
            pair,
            video_0=pair.video_1,
            video_1=pair.video_0,
            preferences={name: None if one is None else 1 - one for name, one in pair.preferences.items()},  # type: ignore[operator]
        )
        for pair in pairs
    ]
    assert fit_heads(turned, [], scores)["reward"] == heads["reward"]


def test_breakdown_covers_every_comparison(planned: tuple[list[PairSample], list[PairSample], Truth]) -> None:
    _, pairs, truth = planned
    scores = scores_from(pairs, truth, noise=1.0)
    figures = evaluate(pairs, scores).dimensions["helpfulness"]
    for name in ("generator_pair", "prompt_type"):
        assert sum(part.num_comparisons for part in getattr(figures.breakdown, name)) == len(pairs)
    parts = figures.breakdown
    for part in (*parts.generator_pair, *parts.prompt_type, *parts.harm_category):
        if part.num_comparisons < 30:
            assert part.accuracy is None
            assert part.interval is None
            assert part.reason == f"{part.num_comparisons} comparisons, fewer than 30"
        else:
            assert part.interval[0] <= part.accuracy <= part.interval[1]
            assert part.reason is None
    critical = [pair for pair in pairs if pair.prompt_type == "safety_critical"]
    (part,) = (part for part in figures.breakdown.prompt_type if part.name == "safety_critical")
    assert part.accuracy == evaluate(critical, scores).dimensions["helpfulness"].accuracy
    names = [part.name.split()[0] for part in figures.breakdown.harm_category]
    assert names == [*(f"S{number}" for number in range(1, 13)), "none"]
    harmless = sum(
        not any((pair.video_0.harm_labels or {}).values()) and not any((pair.video_1.harm_labels or {}).values())
        for pair in pairs
    )
    assert figures.breakdown.harm_category[-1].num_comparisons == harmless


def test_ties_are_a_third_answer(planned: tuple[list[PairSample], list[PairSample], Truth]) -> None:
    _, pairs, truth = planned
    scores = scores_from(pairs, truth, noise=1.0)
    assert evaluate(pairs, scores).dimensions["helpfulness"].tie_aware.reason == "no comparison is labelled a tie"

    def label(number: int, pair: PairSample) -> PairSample:
        """As the scores say, with a tie below 0.5; every fifth the other way round."""
        margin = scores[pair.video_0.name]["reward"] - scores[pair.video_1.name]["reward"]
        better: Preference = "tie" if abs(margin) <= 0.5 else 0 if (margin > 0) == (number % 5 > 0) else 1
        return replace(pair, preferences={**pair.preferences, "helpfulness": better})

    tied = [label(number, pair) for number, pair in enumerate(pairs)]
    heads = fit_heads(tied, [], scores)
    assert heads["reward"].tie_threshold == pytest.approx(0.5, abs=0.05)
    wrong = sum(number % 5 == 0 and pair.preferences["helpfulness"] != "tie" for number, pair in enumerate(tied))
    figures = evaluate(tied, scores, calibrations=heads).dimensions["helpfulness"].tie_aware
    assert figures.accuracy == pytest.approx(1 - wrong / len(tied))
    assert figures.num_tied_labels + evaluate(tied, scores).dimensions["helpfulness"].num_comparisons == len(tied)
    # Without a fitted threshold next to nothing is called a tie.
    assert evaluate(tied, scores).dimensions["helpfulness"].tie_aware.accuracy < figures.accuracy


def test_few_comparisons_have_no_figure(planned: tuple[list[PairSample], list[PairSample], Truth]) -> None:
    train, pairs, truth = planned
    scores = scores_from(pairs, truth, noise=1.0)
    few = pairs[:29]
    result = evaluate(few, scores, train_pairs=train, truth=truth, changed_scores={"single_frame": scores})
    block = result.dimensions["helpfulness"]
    for figures, names in (
        (block, ("accuracy", "interval", "ceiling", "fraction_of_ceiling", "tie_rate", "mean_margin")),
        (block.calibration, ("ece", "brier", "log_loss", "mean_absolute_error")),
    ):
        assert [getattr(figures, name) for name in names] == [None] * len(names)
        assert figures.reason == "29 comparisons, fewer than 30"
    assert all(figures.get("helpfulness") is None for figures in result.controls.values())
    compared = compare(few, scores, scores)["helpfulness"]
    assert compared.accuracy_first is compared.difference is None
    assert "helpfulness: 29 comparisons, fewer than 30" in format_table(result)
    json.dumps(evaluation_fields(result), allow_nan=False)


def test_two_models_on_the_same_pairs(planned: tuple[list[PairSample], list[PairSample], Truth]) -> None:
    _, pairs, truth = planned
    good, bad, like_bad = (scores_from(pairs, truth, noise, seed) for noise, seed in ((0.0, 0), (1.5, 1), (1.5, 2)))
    result = compare(pairs, good, bad)
    assert set(result) == {"helpfulness", "harmlessness"}
    for dimension, figures in result.items():
        accuracies = [evaluate(pairs, scores).dimensions[dimension].accuracy for scores in (good, bad)]
        assert [figures.accuracy_first, figures.accuracy_second] == accuracies
        assert figures.difference == pytest.approx(accuracies[0] - accuracies[1])
        assert figures.first_better - figures.second_better == pytest.approx(len(pairs) * figures.difference)
        assert figures.interval[0] < figures.difference < figures.interval[1]
        assert figures.p_value <= figures.p_value_holm < 0.01
    turned = compare(pairs, bad, good)
    assert turned["helpfulness"].p_value == pytest.approx(result["helpfulness"].p_value)
    assert compare(pairs, bad, like_bad)["harmlessness"].p_value_holm > 0.01
    few = compare(pairs[:20], good, bad)
    assert few["helpfulness"].p_value is None
    assert few["helpfulness"].reason == "20 comparisons, fewer than 30"
    assert "p by prompt" in format_comparison(few, {})


def test_models_without_a_common_head_are_not_compared(
    world: Path, folders: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ["--model", folders[0], "--compare", folders[1], "--data", world / "config-test.json.gz", "--out"]
    monkeypatch.setattr("sys.argv", ["evaluate.py", *map(str, arguments), str(tmp_path / "out")])
    from safe_rlhf_video.commands.evaluate import main

    with one_line(CheckpointError, "no head in common"):
        main()
    assert not (tmp_path / "out").exists()


def test_shuffled_prompts_keep_pairs_and_leave_none_in_place() -> None:
    requests = [ScoreRequest(f"{number}", f"prompt {number // 3}", Path("x")) for number in range(30)]
    shuffled = shuffle_prompts(requests, seed=0)
    other = {before.prompt: after.prompt for before, after in zip(requests, shuffled, strict=True)}
    assert set(other) == set(other.values())
    assert all(other[before.prompt] == after.prompt != before.prompt
               for before, after in zip(requests, shuffled, strict=True))  # fmt: skip
    assert shuffle_prompts(requests, seed=0) == shuffled != shuffle_prompts(requests, seed=1)
    with pytest.raises(SafeRLHFVideoError, match="two prompts"):
        shuffle_prompts(requests[:3], seed=0)


def test_changed_frames_are_what_is_scored(folders: tuple[Path, Path]) -> None:
    video = noise_video(5, 32, 32, 0)
    whole = Scorer.from_pretrained(*folders)
    for change, changed in (
        ("reversed_frames", Video(video.frames[::-1].copy(), video.timestamps)),
        ("single_frame", Video(video.frames[2:3], np.zeros(1))),
    ):
        scorer = ChangedFramesScorer(whole, change)
        assert scorer.fingerprint != whole.fingerprint
        (made,), (expected,), (plain,) = (
            one.score_batch(["a"], [clip])["reward"]
            for one, clip in ((scorer, video), (whole, changed), (whole, video))
        )
        assert made == expected
        assert made != plain
    whole.close()
