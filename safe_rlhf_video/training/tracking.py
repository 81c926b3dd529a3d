"""Metrics: one row a step to <run>/metrics.jsonl and, the same, to W&B. Only the first rank tracks."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from safe_rlhf_video.errors import ConfigError
from safe_rlhf_video.files import write_whole
from safe_rlhf_video.training.config import TrackingConfig


class Tracker:
    """Writes rows, one a step with rising steps; use it as a context manager, or W&B loses the last rows."""

    def __init__(
        self, run: Path, config: TrackingConfig, run_config: Mapping[str, Any], step: int, wandb_id: str | None
    ):
        """Open the run's files.

        Args:
            step: the step the run goes on from; rows of later steps, which the resumed run repeats, are cut off.
            wandb_id: the W&B run to go on with; None starts one.

        Raises:
            ConfigError: W&B is to be online without an API key, or does not start.
        """
        run.mkdir(parents=True, exist_ok=True)
        path = run / "metrics.jsonl"
        _cut_rows_after(path, step)
        self._file = path.open("a", encoding="utf-8")
        self._wandb = _start_wandb(run, config, run_config, wandb_id)
        self.wandb_id: str | None = self._wandb.id if self._wandb is not None else None

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Write one row; a figure that is not finite becomes null in the file."""
        row = {name: value if math.isfinite(value) else None for name, value in metrics.items()}
        self._file.write(json.dumps({"step": step, **row}) + "\n")
        self._file.flush()
        if self._wandb is not None:
            self._wandb.log({"step": step, **metrics}, step=step)

    def __enter__(self) -> Tracker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._file.close()
        if self._wandb is not None:
            self._wandb.finish(exit_code=0 if kind is None else 1)


def _cut_rows_after(path: Path, step: int) -> None:
    if not path.exists():
        return
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            break  # the row that a kill cut short is the last
        if row["step"] <= step:
            kept.append(line + "\n")
    write_whole(path, "".join(kept))


def _start_wandb(run: Path, config: TrackingConfig, run_config: Mapping[str, Any], wandb_id: str | None) -> Any:
    if config.wandb == "disabled":
        return None
    import wandb

    mode: str = config.wandb
    if mode == "auto":
        mode = os.environ.get("WANDB_MODE") or ("online" if wandb.login(prompt=False, verify=False) else "offline")
    if mode == "disabled":
        return None
    try:
        # wandb.init would ask for the key on a terminal.
        if mode == "online" and not (os.environ.get("WANDB_API_KEY") or wandb.login(prompt=False, verify=False)):
            raise ConfigError("tracking.wandb: online needs an API key; set WANDB_API_KEY, or use auto or offline")
        started = wandb.init(
            project=config.project,
            name=run.name,
            dir=str(run),
            config=dict(run_config),
            mode=mode,  # type: ignore[arg-type]
            id=wandb_id,
            resume="allow" if wandb_id else None,
            settings=wandb.Settings(silent=True, console="off"),
        )
    except (wandb.errors.Error, ValueError) as error:  # ValueError: a wrong WANDB_... in the environment
        reason = " ".join(str(error).split("For further information")[0].split())
        raise ConfigError(f"tracking.wandb: W&B does not start ({reason}); use tracking.wandb offline") from error
    started.define_metric("*", step_metric="step")
    return started
