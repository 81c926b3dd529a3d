"""Updates the multiplier during training: up while generations cost more than the limit, down while they cost less.

To choose among existing generations, `selection.solve_multiplier` finds the best multiplier directly.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from safe_rlhf_video.errors import CheckpointError, ConfigError
from safe_rlhf_video.files import write_whole
from safe_rlhf_video.lagrangian.score import check_cost_limit, check_multiplier
from safe_rlhf_video.reading import load_json, read_regular


@dataclass(kw_only=True)
class LagrangeMultiplier:
    """Holds lambda and moves it by stochastic gradient descent on its logarithm.

        ln lambda <- min(max(ln lambda + a * lambda * (J_C - d), ln lambda_min), ln lambda_max)

    J_C is the mean cost of the last `window_size` episodes (generations, with one cost each). Source: Safe RLHF (arXiv
    2310.12773); its published code has these defaults, and no lambda_min. Without it one bad batch is the end of it: a
    mean cost of -1e4 makes lambda e^-1000, which is 0, and steps proportional to lambda never bring it back.

    Attributes:
        initial: lambda before the first step, > 0.
        learning_rate: a, > 0.
        minimum: lambda_min, > 0 and at most `initial`. From 0.01 an excess of 1 brings lambda back to 1 in a thousand
            steps, at the default rate.
        maximum: lambda_max, at least `initial` and at most `MAX_LAGRANGE_MULTIPLIER`.
        cost_limit: d, in units of the cost head.
        window_size: number of episodes in the mean J_C.
        delay_steps: updates that only fill the window, before the first one moves lambda.
        log_value: ln lambda; this and the following fields are state.
        num_updates: number of calls of `update`.
        recent_costs: the window, oldest first.
    """

    initial: float = 1.0
    learning_rate: float = 0.1
    minimum: float = 0.01
    maximum: float = 5.0
    cost_limit: float = 0.0
    window_size: int = 128
    delay_steps: int = 0
    log_value: float | None = None
    num_updates: int = 0
    recent_costs: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        for name in ("initial", "learning_rate", "minimum", "maximum"):
            if not (_is_number(getattr(self, name)) and getattr(self, name) > 0):
                raise ConfigError(f"{name} must be a finite number > 0, got {getattr(self, name)!r:.40}")
        if self.initial > self.maximum:
            raise ConfigError(f"initial must be at most maximum = {self.maximum}, got {self.initial}")
        if self.initial < self.minimum:
            raise ConfigError(f"initial must be at least minimum = {self.minimum}, got {self.initial}")
        check_multiplier(self.maximum, "maximum")
        if not _is_number(self.cost_limit):
            raise ConfigError(f"cost_limit must be a finite number, got {self.cost_limit!r:.40}")
        check_cost_limit(self.cost_limit)
        for name, least in (("window_size", 1), ("delay_steps", 0), ("num_updates", 0)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ConfigError(f"{name} must be a whole number >= {least}, got {value!r:.40}")
        if self.log_value is None:
            self.log_value = math.log(self.initial)
        low, high = math.log(self.minimum), math.log(self.maximum)
        if not _is_number(self.log_value) or not low <= self.log_value <= high:
            raise ConfigError(
                f"log_value must be a number from ln {self.minimum} to ln {self.maximum}, got {self.log_value!r:.40}"
            )
        self.recent_costs = tuple(self.recent_costs)
        if len(self.recent_costs) > self.window_size or not all(map(_is_number, self.recent_costs)):
            raise ConfigError(f"recent_costs must hold up to window_size = {self.window_size} finite numbers")

    @property
    def value(self) -> float:
        """Lambda."""
        assert self.log_value is not None
        return math.exp(self.log_value)

    def update(self, costs: ArrayLike) -> float:
        """Adds the costs of a step's generations to the window and moves lambda once.

        Args:
            costs: (N,) of the step's episodes on all ranks, N >= 1; in units of the cost head.

        Returns:
            Lambda afterwards.

        Raises:
            ValueError: the costs are not one finite row of at least one number, or too large for a mean; lambda and the
                window stay as they were.
        """
        new = np.asarray(costs, dtype=np.float64)
        if new.ndim != 1 or not len(new) or not np.isfinite(new).all():
            raise ValueError(f"costs must be one row of at least one number, all finite, got shape {new.shape}")
        window = (*self.recent_costs, *new.tolist())[-self.window_size :]
        assert self.log_value is not None
        moved = self.log_value
        if self.num_updates >= self.delay_steps:
            excess = math.fsum(cost / len(window) for cost in window) - self.cost_limit
            moved += self.learning_rate * self.value * excess
            if not math.isfinite(moved):
                raise ValueError(f"costs are too large for a step: their mean exceeds the limit by {excess:g}")
        self.log_value = min(max(moved, math.log(self.minimum)), math.log(self.maximum))
        self.num_updates += 1
        self.recent_costs = window
        return self.value

    def to_dict(self) -> dict[str, Any]:
        """Returns settings and state as JSON values; `from_dict` continues exactly from there."""
        return {**asdict(self), "recent_costs": list(self.recent_costs)}

    @classmethod
    def from_dict(cls, state: Mapping[str, Any]) -> LagrangeMultiplier:
        """Restores a multiplier from the values of `to_dict`.

        Raises:
            ConfigError: a field is missing, unknown or has a wrong value.
        """
        names = {field.name for field in fields(cls)}
        if set(state) != names:
            raise ConfigError(
                f"state of a LagrangeMultiplier: missing fields {sorted(names - set(state))}, "
                f"unknown fields {sorted(set(state) - names)}"
            )
        if not isinstance(state["recent_costs"], list | tuple):
            raise ConfigError(f"recent_costs must be a list, got {state['recent_costs']!r:.40}")
        return cls(**state)

    def save(self, path: Path) -> None:
        """Writes settings and state to a JSON file, completely or not at all.

        Raises:
            CheckpointError: the file cannot be written.
        """
        try:
            write_whole(path, json.dumps(self.to_dict(), allow_nan=False) + "\n")
        except OSError as error:
            raise CheckpointError(f"{path}: cannot be written ({error.strerror}); choose another path") from error

    @classmethod
    def load(cls, path: Path) -> LagrangeMultiplier:
        """Reads a file that `save` wrote.

        Raises:
            CheckpointError: the file is missing, damaged or does not hold a multiplier.
        """
        try:
            state = load_json(read_regular(path))
            if not isinstance(state, dict):
                raise ConfigError("not a JSON object")
            return cls.from_dict(state)
        except OSError as error:
            raise CheckpointError(f"{path}: cannot be read ({error.strerror}); give the file that was saved") from error
        except (ConfigError, ValueError) as error:
            raise CheckpointError(f"{path}: holds no multiplier ({error}); give the file that was saved") from error


def _is_number(value: object) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # a whole number that no float can hold
        return False
