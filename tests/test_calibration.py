"""Calibration: prompts that no training reads, temperatures in a model folder, and what a scorer makes of them."""

from pathlib import Path

import numpy as np
import pytest
from small_models import one_line

from safe_rlhf_video.data.datasets import PairDataset
from safe_rlhf_video.data.preferences import is_for_calibration, normalise_prompt
from safe_rlhf_video.errors import ConfigError, SampleError
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
