"""What ZeRO divides among ranks changes no loss and no saved model: 20 steps at every stage, adapters and in full."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, MakeOnce, launch, write_training_config
from zero_probe import HEADS, STAGES, STEPS, TRAINED

from safe_rlhf_video.config_parser import parse_config
from safe_rlhf_video.scoring.scorer import Scorer
from safe_rlhf_video.training.config import TrainConfig
from safe_rlhf_video.training.data import load_data

pytestmark = pytest.mark.slow
CASES = [(trained, stage) for trained in TRAINED for stage in STAGES]


@pytest.fixture(scope="module")
def config(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_training_config(
        tmp_path_factory.mktemp("zero") / "run.yaml",
        world,
        # Micro-batches of two prompts at most; a fifth prompt leaves a rank without one.
        optimization={
            "prompts_per_step": 5,
            "micro_batch_tokens": 1000,
            "projector_learning_rate": 1e-3,
            "language_model_learning_rate": 1e-4,
            "averaging": 0.3,
        },
        data={"workers": 1},
    )


@pytest.fixture(scope="module")
def folders(config: Path, make_once: MakeOnce) -> dict[int, Path]:
    """World size -> the probe's folder."""
    probe = ROOT / "tests" / "zero_probe.py"

    def make(ranks: int) -> Path:
        return make_once(f"zero_{ranks}", lambda folder: launch(probe, config, folder, ranks=ranks))

    return {ranks: make(ranks) for ranks in (1, 2)}


def read(folder: Path, trained: str, stage: int) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / f"{trained}_{stage}" / "losses.json").read_text())
    assert len(found["losses"]) == STEPS
    return found


@pytest.mark.parametrize(("trained", "stage"), CASES)
def test_losses_are_those_of_one_process(folders: dict[int, Path], trained: str, stage: int) -> None:
    alone = read(folders[1], trained, 0)["losses"]
    assert len(set(alone)) == STEPS
    for ranks in (1, 2):
        assert read(folders[ranks], trained, stage)["losses"] == pytest.approx(alone, abs=1e-4)


@pytest.mark.parametrize(("trained", "stage"), CASES)
@pytest.mark.parametrize("ranks", [1, 2])
def test_averages_are_those_of_one_process(folders: dict[int, Path], trained: str, stage: int, ranks: int) -> None:
    alone, scores = read(folders[1], trained, 0)["scores"], read(folders[ranks], trained, stage)["scores"]
    for head, values in alone.items():
        assert scores[head] == pytest.approx(values, abs=1e-4)


@pytest.mark.parametrize(("trained", "stage"), CASES)
@pytest.mark.parametrize("ranks", [1, 2])
def test_a_saved_model_scores_as_the_engine_does(
    folders: dict[int, Path], config: Path, trained: str, stage: int, ranks: int
) -> None:
    data = load_data(parse_config(TrainConfig, ["--config", str(config)], ""), HEADS)
    group = data.validation[0]
    clips = [data.clip_files[video.name] for video in group.videos]
    with Scorer.from_pretrained(folders[ranks] / f"{trained}_{stage}" / "model", device="cpu") as scorer:
        scores = scorer.score_batch([group.prompt_text] * len(clips), scorer.read(clips))
    for head, values in read(folders[ranks], trained, stage)["scores"].items():
        assert scores[head].tolist() == pytest.approx(values, abs=1e-6)
