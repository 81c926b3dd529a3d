"""Metrics: one row a step to <run>/metrics.jsonl and, the same, to W&B. Only the first rank tracks."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safe_rlhf_video.training.config import TrackingConfig


class Tracker:
    """Writes rows; make one for a run, log with rising steps, close it."""

    def __init__(self, run: Path, config: TrackingConfig, run_config: Mapping[str, Any], step: int, wandb_id: str | None):
        """Open the run's files.

        Args:
            step: the step the run goes on from; rows of later steps, which the resumed run repeats, are cut off.
            wandb_id: the W&B run to go on with; None starts one.
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

    def close(self) -> None:
        self._file.close()
        if self._wandb is not None:
            self._wandb.finish()


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
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text("".join(kept), encoding="utf-8")
    os.replace(partial, path)


def _start_wandb(run: Path, config: TrackingConfig, run_config: Mapping[str, Any], wandb_id: str | None) -> Any:
    if config.wandb == "disabled":
        return None
    import wandb

    mode = config.wandb
    if mode == "auto":
        mode = os.environ.get("WANDB_MODE") or ("online" if wandb.api.api_key else "offline")  # type: ignore[assignment]
    if mode == "disabled":
        return None
    started = wandb.init(
        project=config.project,
        name=run.name,
        dir=str(run),
        config=dict(run_config),
        mode=mode,
        id=wandb_id,
        resume="allow" if wandb_id else None,
        settings=wandb.Settings(silent=True, console="off"),
    )
    started.define_metric("*", step_metric="step")
    return started
