"""The reduced gradient is that of the whole step's loss, however a step is divided among ranks and micro-batches."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import ROOT, MakeOnce, launch
from gradient_probe import CASES
from safetensors.torch import load_file

# Every part and every way to divide a step, on the stages that divide most; the slow tests have all combinations.
FAST = ("accumulated", "zero_2_mixed", "zero_3_idle", "zero_3_mixed_accumulated", "full_zero_3_pieces")
SLOW = tuple(case for case in CASES if case not in FAST)
cases = pytest.mark.parametrize("case", [*FAST, *(pytest.param(case, marks=pytest.mark.slow) for case in SLOW)])

Read = Callable[[str, int], dict[str, torch.Tensor]]


@pytest.fixture(scope="session")
def read(make_once: MakeOnce) -> Read:
    """Read a file of the probe by its name, for a number of ranks; a probe does all fast or all slow cases."""
    probe = ROOT / "tests" / "gradient_probe.py"

    def read_file(name: str, ranks: int) -> dict[str, torch.Tensor]:
        is_fast = name.removesuffix("-truth") in FAST

        def run(folder: Path) -> None:
            launch(probe, folder, *(FAST if is_fast else SLOW), ranks=ranks if ranks > 1 else None)

        return load_file(make_once(f"gradients_{'fast' if is_fast else 'slow'}_{ranks}", run) / f"{name}.safetensors")

    return read_file


def relative_difference(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    """The largest difference over parameters, relative to the norm of the parameter's gradient."""
    assert one.keys() == other.keys()
    return max(float((one[name] - other[name]).norm() / other[name].norm()) for name in one)


@cases
@pytest.mark.parametrize("ranks", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_gradient_equals_plain_autograd(read: Read, ranks: int, case: str) -> None:
    assert relative_difference(read(case, ranks), read(f"{case}-truth", ranks)) < 1e-5


@cases
@pytest.mark.slow
def test_two_ranks_equal_one(read: Read, case: str) -> None:
    assert relative_difference(read(case, 2), read(case, 1)) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("trained", ["", "full_"])
def test_zero_stages_agree_at_the_first_step(read: Read, trained: str) -> None:
    stage_0 = read(f"{trained}zero_0" if trained else "accumulated", 2)
    for case in (f"{trained}zero_{stage}" for stage in (1, 2, 3)):
        assert relative_difference(read(case, 2), stage_0) < 1e-5
