"""A cost that was trained without labels of what is safe has no zero: nothing says that a clip is safe or unsafe."""

import json
from pathlib import Path

import numpy as np
import pytest
from made_up_evaluations import made_up_evaluation, sign_figures
from small_models import COST, REWARD, write_model

from safe_rlhf_video import Scorer, TextResponse
from safe_rlhf_video.commands.score import main as score_command
from safe_rlhf_video.data.datasets import PairDataset
from safe_rlhf_video.data.preferences import safety_signs, videos_of
from safe_rlhf_video.data.records import PromptSample
from safe_rlhf_video.evaluation.evaluate import evaluate
from safe_rlhf_video.evaluation.generator import evaluate_generators
from safe_rlhf_video.evaluation.generator_table import format_generators
from safe_rlhf_video.evaluation.table import format_table
from safe_rlhf_video.export.export_model import export_model
from safe_rlhf_video.models.record import NO_ZERO, read_record
from safe_rlhf_video.scoring.decisions import TradeOff, judge_pair, judge_ranking
from safe_rlhf_video.training.config import DataConfig, LossConfig, TrainConfig
from safe_rlhf_video.training.data import load_data

SCORES = {"reward": (2.0, 1.0), "cost": (3.0, -1.0)}


def test_training_records_what_gave_the_cost_its_zero(world: Path) -> None:
    data = DataConfig(path=str(world / "config-train.json.gz"), validation_fraction=0.0)

    def count(head: str, sign: float = 1.0) -> tuple[int, int] | None:
        return load_data(TrainConfig(out="-", data=data, loss=LossConfig(sign=sign)), [head]).sign_labels

    signs = list(safety_signs(PairDataset.load(world / "config-train.json.gz").pairs).values())
    assert count("cost") == (signs.count(1), signs.count(-1))
    json.dumps(count("cost"))  # model.json has them
    assert count("cost", sign=0.0) == (0, 0)
    assert count("reward") is None


def test_no_video_is_called_safe_or_unsafe() -> None:
    for multiplier in (0.0, 0.1, 5.0):
        trade_off = TradeOff(multiplier)
        pair = judge_pair(SCORES, trade_off, no_zero=NO_ZERO)
        ranking = judge_ranking(SCORES, trade_off, no_zero=NO_ZERO)
        usual = judge_pair(SCORES, trade_off)
        assert usual.is_safe == (False, True)
        assert usual.is_safe_reason is None
        assert (pair.preferred, pair.costs) == (usual.preferred, usual.costs)
        for judged in (pair, ranking):
            assert judged.is_safe is None
            assert judged.is_safe_reason == NO_ZERO
            assert "unsafe" not in judged.explain()
            assert "safe)" not in judged.explain()
            assert NO_ZERO in judged.explain()
        assert pair.reason == usual.reason.replace("unsafe (cost", "over the limit (cost")
    assert judge_pair({"reward": (1.0, 2.0)}, None, no_zero=NO_ZERO).is_safe_reason is None


def test_the_folder_says_so_wherever_it_is_used(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folders = [write_model(tmp_path / "reward", REWARD), write_model(tmp_path / "cost", COST)]
    fields = json.loads((folders[1] / "model.json").read_text())
    fields["training"]["sign_labels"] = [0, 0]
    (folders[1] / "model.json").write_text(json.dumps(fields))
    assert read_record(folders[1]).training.no_zero == NO_ZERO
    assert read_record(folders[0]).training.no_zero is None
    with Scorer.from_pretrained(*folders, device="cpu") as scorer:
        assert scorer.no_zero == scorer.describe()["no_zero"] == NO_ZERO
        assert scorer.score_pair("a", TextResponse("b"), TextResponse("c")).is_safe is None
        assert scorer.rank("a", [TextResponse("b"), TextResponse("c")]).is_safe_reason == NO_ZERO
    with Scorer.from_pretrained(folders[0], device="cpu") as scorer:
        assert scorer.no_zero is None
    rows, out = tmp_path / "rows.jsonl", tmp_path / "out.jsonl"
    rows.write_text(json.dumps({"prompt": "a", "video": str(next(world.rglob("*.mp4")))}) + "\n")
    monkeypatch.setattr(
        "sys.argv", ["score.py", "--model", *map(str, folders), "--input", str(rows), "--out", str(out)]
    )
    score_command()
    row = json.loads(out.read_text())
    assert row["is_safe"] is None
    assert row["is_safe_reason"] == NO_ZERO
    export_model(folders[1], tmp_path / "card")
    assert NO_ZERO in (tmp_path / "card" / "README.md").read_text()
    assert read_record(tmp_path / "card").training.no_zero == NO_ZERO


def test_the_sign_has_no_figures(world: Path) -> None:
    pairs = PairDataset.load(world / "config-train.json.gz").pairs
    rng = np.random.default_rng(0)
    scores = {video.name: {"cost": float(rng.normal())} for pair in pairs for video in videos_of(pair)}
    result = evaluate(pairs, scores, train_pairs=pairs, no_zero=NO_ZERO)
    sign, usual = result.cost_sign, evaluate(pairs, scores, train_pairs=pairs).cost_sign
    assert sign is not None
    assert usual is not None
    assert sign.accuracy is sign.balanced_accuracy is None
    assert sign.reason == NO_ZERO
    assert sign.auroc == usual.auroc  # it needs no zero
    assert "cost_sign" not in result.control_gaps
    assert "cost_sign_auroc" in result.control_gaps
    assert NO_ZERO in format_table(result)
    assert NO_ZERO not in format_table(made_up_evaluation(cost_sign=sign_figures()))


def test_generators_have_no_harmful_rate() -> None:
    prompts = [PromptSample(str(number), f"prompt {number}", None, None, {}) for number in range(40)]
    rng = np.random.default_rng(0)
    scores = {
        name: {one.prompt_id: [{"reward": float(rng.normal()), "cost": float(rng.normal())}] for one in prompts}
        for name in ("a", "b")
    }
    result = evaluate_generators(prompts, scores, no_zero=NO_ZERO)
    assert result.generators["a"].all.harmful_rate is None
    assert result.generators["a"].all.cost is not None
    assert result.comparison is not None
    assert result.comparison.all.difference is not None
    assert result.comparison.all.difference.harmful_rate is None
    assert f"no harmful rates: {NO_ZERO}" in format_generators(result)
