"""Text-to-video models that a run never sees: left out of training and calibration, told apart in evaluation."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, Record, launch, write_training_config
from small_models import one_line

from safe_rlhf_video.calibration.held_out import held_out
from safe_rlhf_video.data.datasets import PairDataset
from safe_rlhf_video.data.preferences import is_for_calibration
from safe_rlhf_video.data.records import VIDEO_NAMES, PairSample, parse_pair
from safe_rlhf_video.errors import ConfigError, SampleError
from safe_rlhf_video.evaluation.evaluate import evaluate
from safe_rlhf_video.evaluation.results import evaluation_fields
from safe_rlhf_video.evaluation.table import format_table
from safe_rlhf_video.models.record import TrainingFacts
from safe_rlhf_video.stats.intervals import share_interval
from safe_rlhf_video.training.config import DataConfig, TrainConfig
from safe_rlhf_video.training.data import TrainingData, load_data
from safe_rlhf_video.worlds.video_world import plan_split

Scores = dict[str, dict[str, float]]


def load(world: Path, *left_out: str, **fields: float | str) -> TrainingData:
    path = str(world / "config-train.json.gz")
    data = DataConfig(path=path, leave_out_generators=list(left_out), **fields)  # type: ignore[arg-type]
    return load_data(TrainConfig(out="-", data=data), ["reward"])


def generators(pair: PairSample) -> list[str | None]:
    return [pair.video_0.generated_from, pair.video_1.generated_from]


def test_no_clip_of_a_generator_left_out_is_read(world: Path) -> None:
    pairs = PairDataset.load(world / "config-train.json.gz").pairs
    data = load(world, "ember", "aurora", validation_fraction=0.3)
    groups = [*data.train, *data.validation]
    kept = [pair for pair in pairs if not {"ember", "aurora"} & set(generators(pair))]
    assert 0 < len(kept) < len(pairs)
    assert {video.generated_from for group in groups for video in group.videos} == {"borealis", "cumulus", "drizzle"}
    assert sum(group.num_comparisons("helpfulness") for group in groups) == len(kept)
    lost = f"{len(pairs) - len(kept)} of {len(pairs)} comparisons have a clip of aurora, ember and are left out"
    assert any(note.startswith(lost) for note in data.notes)
    # Nothing moves for a run that leaves none out.
    none = load(world)
    default = load_data(TrainConfig("-", DataConfig(str(world / "config-train.json.gz"))), ["reward"])
    assert (none.fingerprint, none.notes) == (default.fingerprint, default.notes)
    assert none.fingerprint != load(world, "ember").fingerprint
    # What a calibration may use is without them too.
    facts = TrainingFacts(calibration_fraction=0.4, seed=0, leave_out_generators=("aurora", "ember"))
    assert held_out(pairs, "train", "m", facts) == [
        pair for pair in kept if is_for_calibration(pair.prompt_text, 0.4, seed=0)
    ]
    assert held_out(pairs, "train", "m", replace(facts, calibration_fraction=0.0), []) == kept
    with one_line(SampleError, "every record has a clip of aurora, ember"):
        held_out([pair for pair in pairs if pair not in kept], "train", "m", facts)


def test_a_clip_is_left_out_wherever_it_stands(
    world: Path, edited_world: Callable[[Callable[[list[Record]], None]], Path]
) -> None:
    """One record of a clip says what made it, the other does not."""
    silent: set[str] = set()

    def hide(records: list[Record]) -> None:
        seen: set[str] = set()
        for record in records:
            for video in (record[side] for side in VIDEO_NAMES):
                if video["generated_from"] == "ember" and video["video_id"] in seen:
                    del video["generated_from"]
                    silent.add(video["video_id"])
                seen.add(video["video_id"])

    folder = edited_world(hide)
    data = load(folder, "ember", validation_fraction=0.0, video_dir=str(world / "videos"))
    assert silent
    assert not silent & {video.video_id for group in data.train for video in group.videos}
    assert data.fingerprint == load(world, "ember", validation_fraction=0.0).fingerprint


def test_wrong_names_are_one_line(world: Path) -> None:
    with one_line(SampleError, "data.leave_out_generators: 'sora'", "aurora, borealis, cumulus, drizzle, ember"):
        load(world, "ember", "sora")
    with one_line(SampleError, "every record", "aurora, borealis, cumulus, drizzle"):
        load(world, "aurora", "borealis", "cumulus", "drizzle")
    for names in (["ember", "ember"], [""]):
        with one_line(ConfigError, "data.leave_out_generators"):
            DataConfig(path="x", leave_out_generators=names)


@pytest.fixture(scope="module")
def judged() -> tuple[list[PairSample], Scores]:
    """Comparisons, some of two clips of one generator or of unknown ones, and scores that are often right."""
    records = [record for pairs, _, _ in plan_split("test", 600, seed=5) for record in pairs]
    truth = {name: true for _, _, more in plan_split("test", 600, seed=5) for name, true in more.items()}
    for record in records[::3]:
        record["video_0"]["generated_from"] = record["video_1"]["generated_from"]
    for record in records[::7]:
        del record["video_1"]["generated_from"]
    rng = np.random.default_rng(0)
    scores = {}
    pairs = [parse_pair(record, "planned") for record in records]
    # Sorted: in a set's order, another one in every process, the noise now and then made a tie, worth half a credit.
    for name, video_id in sorted({(v.name, v.video_id) for pair in pairs for v in (pair.video_0, pair.video_1)}):
        true = truth[video_id]
        scores[name] = {"reward": true["helpfulness"] + rng.normal(), "cost": true["cost"] + 2.0 * rng.normal()}
    return pairs, scores


def test_evaluation_tells_unseen_generators_apart(judged: tuple[list[PairSample], Scores]) -> None:
    pairs, scores = judged
    left_out = ("ember", "aurora")
    result = evaluate(pairs, scores, unseen_generators={"reward": left_out, "cost": left_out})
    for dimension, head, direction in (("helpfulness", "reward", 1), ("harmlessness", "cost", -1)):
        found = result.dimensions[dimension].unseen_generators
        assert found.generators == left_out
        parts: dict[str, list[tuple[float, str]]] = {"any": [], "both": [], "none": []}
        for pair in pairs:
            sides = (pair.video_0, pair.video_1)
            preferred = pair.preferences[dimension]
            assert preferred is not None
            margin = scores[sides[preferred].name][head] - scores[sides[1 - preferred].name][head]
            one = (float(direction * margin > 0), pair.prompt_id)
            unseen = [made_by in left_out for made_by in generators(pair)]
            parts["any" if any(unseen) else "none"].append(one)
            if all(unseen):
                parts["both"].append(one)
        for name, rows in parts.items():
            right, prompts = zip(*rows, strict=True)
            part = getattr(found, name)
            assert part.num_comparisons == len(rows) > 30
            assert part.num_prompts == len(set(prompts))
            assert part.accuracy == pytest.approx(np.mean(right))
            assert part.interval == pytest.approx(share_interval(right, prompts), rel=1e-12)  # sums in another order
    text = format_table(result)
    assert "training left out (ember, aurora)" in text
    assert f"{found.both.num_comparisons}: {found.both.accuracy:.4f} [" in text

    videos = {video.name: video for pair in pairs for video in (pair.video_0, pair.video_1)}
    sign = result.cost_sign.unseen_generators
    for part, is_unseen in ((sign.unseen, True), (sign.seen, False)):
        chosen = [video for video in videos.values() if (video.generated_from in left_out) == is_unseen]
        right = [(scores[video.name]["cost"] > 0) != video.is_safe for video in chosen]
        assert part.accuracy == pytest.approx(np.mean(right))
        assert part.interval[0] < np.mean(right) < part.interval[1]
        assert part.num_safe + part.num_unsafe == len(chosen)

    # Of another head's training nothing is known, and without the fact nothing is said.
    half = evaluate(pairs, scores, unseen_generators={"reward": (), "cost": left_out})
    assert half.dimensions["helpfulness"].unseen_generators is None
    assert half.dimensions["harmlessness"] == result.dimensions["harmlessness"]
    plain = evaluate(pairs, scores)
    assert plain.dimensions["helpfulness"].unseen_generators is plain.cost_sign.unseen_generators is None
    assert "left out" not in format_table(plain)


def test_few_comparisons_of_unseen_generators_have_no_figure(judged: tuple[list[PairSample], Scores]) -> None:
    pairs = [pair for pair in judged[0] if "ember" not in generators(pair)]
    pairs += [pair for pair in judged[0] if "ember" in generators(pair)][:12]
    result = evaluate(pairs, judged[1], unseen_generators={"reward": ["ember"], "cost": ["ember"]})
    part = result.dimensions["helpfulness"].unseen_generators.any
    assert (part.accuracy, part.interval, part.num_comparisons) == (None, None, 12)
    assert part.reason == "12 comparisons, fewer than 30"
    part = result.cost_sign.unseen_generators.unseen
    assert (part.accuracy, part.balanced_accuracy, part.interval) == (None, None, None)
    assert "fewer than 30" in part.reason
    json.dumps(evaluation_fields(result), allow_nan=False)
    assert "12: -" in format_table(result)


def test_models_are_compared_on_the_same_comparisons(
    judged: tuple[list[PairSample], Scores], monkeypatch: pytest.MonkeyPatch
) -> None:
    pairs, scores = judged
    rng = np.random.default_rng(1)
    noisy = {name: {head: value + 2.0 * rng.normal() for head, value in row.items()} for name, row in scores.items()}
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    from leave_one_generator_out import format_markdown, judge

    generators_left_out = ("cumulus", "ember")
    figures = judge(pairs, {"all": scores, "cumulus": noisy, "ember": scores}, generators_left_out)
    assert list(figures) == ["helpfulness", "harmlessness", "cost_sign"]
    assert list(figures["helpfulness"]) == ["cumulus", "ember", "pooled"]
    rows: dict[str, list[tuple[int, int]]] = {"unseen": [], "seen": []}
    for pair in pairs:
        sides = (pair.video_0, pair.video_1)
        preferred = pair.preferences["harmlessness"]
        assert preferred is not None
        chosen, rejected = sides[preferred].name, sides[1 - preferred].name
        mine, others = (int(table[chosen]["cost"] < table[rejected]["cost"]) for table in (noisy, scores))
        rows["unseen" if "cumulus" in generators(pair) else "seen"].append((mine, others))
    for part, right in rows.items():
        found = figures["harmlessness"]["cumulus"][part]
        mean = np.mean(right, axis=0)
        assert found["num"] == len(right)
        assert (found["accuracy"], found["accuracy_of_all"]) == pytest.approx(tuple(mean))
        assert found["difference"] == pytest.approx(mean[0] - mean[1])
        assert found["interval"][0] < found["difference"] < found["interval"][1]
        same = figures["harmlessness"]["ember"][part]
        assert same["difference"] == 0.0
        assert same["interval"][0] == -same["interval"][1] < 0
        pooled = figures["harmlessness"]["pooled"][part]
        assert pooled["num"] == found["num"] + same["num"]
        assert pooled["difference"] * pooled["num"] == pytest.approx(found["difference"] * found["num"])
    videos = {video.name: video for pair in pairs for video in (pair.video_0, pair.video_1)}
    of_it = [name for name, video in videos.items() if video.generated_from == "cumulus"]
    sign = figures["cost_sign"]["cumulus"]["unseen"]
    assert sign["num"] == len(of_it)
    assert sign["accuracy"] == pytest.approx(
        np.mean([(noisy[name]["cost"] > 0) != videos[name].is_safe for name in of_it])
    )
    table = list(
        format_markdown({"num_training_comparisons": {"all": 9, "cumulus": 5, "ember": 4}, "figures": figures})
    )
    assert len(table) == 2 + 9
    few = judge(pairs[:20], {"all": scores, "ember": scores}, ["ember"])
    assert few["helpfulness"]["ember"]["unseen"]["accuracy"] is None


@pytest.mark.slow
def test_the_fact_goes_with_the_model(world: Path, tmp_path: Path) -> None:
    config = write_training_config(tmp_path / "run.yaml", world, data={"leave_out_generators": ["ember"]})
    done = launch("scripts/train_reward.py", "--config", config, "--optimization.max_steps", 2, ranks=1)
    assert "have a clip of ember and are left out" in done.stdout
    record = json.loads((tmp_path / "run" / "model" / "model.json").read_text())
    assert record["training"]["leave_out_generators"] == ["ember"]
    data = world / "config-train.json.gz"  # has more comparisons than the test file
    launch("scripts/evaluate.py", "--model", tmp_path / "run", "--data", data, "--out", tmp_path / "evaluation")
    result = json.loads((tmp_path / "evaluation" / "evaluation.json").read_text())
    found = result["helpfulness"]["unseen_generators"]
    assert found["generators"] == ["ember"]
    assert found["any"]["num_comparisons"] == sum("ember" in generators(pair) for pair in PairDataset.load(data).pairs)
