"""The reduced gradient is that of the whole step's loss, however a step is divided among ranks and micro-batches."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from conftest import ROOT, MakeOnce, launch
from gradient_probe import CASES
from safetensors.torch import load_file


@pytest.fixture(scope="module")
def gradients(make_once: MakeOnce) -> dict[int, Path]:
    """World size -> the folder with the probe's gradients."""
    probe = ROOT / "tests" / "gradient_probe.py"

    def make(ranks: int) -> Path:
        launched_as = ranks if ranks > 1 else None
        return make_once(f"gradients_{ranks}", lambda folder: launch(probe, folder, *CASES, ranks=launched_as))

    return {ranks: make(ranks) for ranks in (1, 2)}


def relative_difference(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    """The largest difference over parameters, relative to the norm of the parameter's gradient."""
    assert one.keys() == other.keys()
    return max(float((one[name] - other[name]).norm() / other[name].norm()) for name in one)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("ranks", [1, 2])
def test_gradient_equals_plain_autograd(gradients: dict[int, Path], ranks: int, case: str) -> None:
    found = load_file(gradients[ranks] / f"{case}.safetensors")
    truth = load_file(gradients[ranks] / f"{case}-truth.safetensors")
    assert relative_difference(found, truth) < 1e-5


@pytest.mark.parametrize("case", CASES)
def test_two_ranks_equal_one(gradients: dict[int, Path], case: str) -> None:
    one, two = (load_file(gradients[ranks] / f"{case}.safetensors") for ranks in (1, 2))
    assert relative_difference(two, one) < 1e-5


@pytest.mark.parametrize("trained", ["", "full_"])
def test_zero_stages_agree_at_the_first_step(gradients: dict[int, Path], trained: str) -> None:
    cases = [f"{trained}zero_{stage}" for stage in (1, 2, 3)]
    stage_0 = load_file(
        gradients[2] / f"{trained}zero_0.safetensors" if trained else gradients[2] / "accumulated.safetensors"
    )
    for case in cases:
        assert relative_difference(load_file(gradients[2] / f"{case}.safetensors"), stage_0) < 1e-5
