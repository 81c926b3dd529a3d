"""Writes metrics: one row a step to <run>/metrics.jsonl, and the same row, media and the model to W&B.

Only the first rank tracks.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm import tqdm

from safe_rlhf_video.errors import CheckpointError, ConfigError
from safe_rlhf_video.files import flush, make_folder, whole_lines, write_whole
from safe_rlhf_video.reading import load_json
from safe_rlhf_video.training.config import TrackingConfig

if TYPE_CHECKING:  # it needs torch, which takes seconds to import
    from safe_rlhf_video.training.media import ValidationMedia, ValidationPair

NUM_BINS = 32


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
            CheckpointError: a row that the run will not repeat is damaged.
            ConfigError: W&B is to be online without an API key, or does not start.
        """
        make_folder(run)
        path = run / "metrics.jsonl"
        _cut_rows_after(path, step)
        self._file = path.open("a", encoding="utf-8")
        flush(run)
        self._wandb = _start_wandb(run, config, run_config, wandb_id)
        self.wandb_id: str | None = self._wandb.id if self._wandb is not None else None
        self._looks: dict[str, Any] = {}

    def log(self, step: int, metrics: Mapping[str, float], media: ValidationMedia | None = None) -> None:
        """Write one row; a figure that is not finite becomes null in the file, which gets no media."""
        row = {name: value if math.isfinite(value) else None for name, value in metrics.items()}
        self._file.write(json.dumps({"step": step, **row}) + "\n")
        self._file.flush()
        if self._wandb is not None:
            shown = self._show(media) if media is not None else {}
            with self._surviving_wandb():
                self._wandb.log({"step": step, **metrics, **shown}, step=step)

    def flush(self) -> None:
        """Waits until the rows are on the disk: a checkpoint must not outlive those before it."""
        os.fsync(self._file.fileno())

    def log_model(self, folder: Path, facts: Mapping[str, Any]) -> None:
        """Hand a model folder to W&B, as an artifact that is named for the run; the folder must stay as it is.

        Args:
            facts: of the model, in plain values.
        """
        if self._wandb is None:
            return
        import wandb

        with self._surviving_wandb():
            artifact = wandb.Artifact(f"model-{self._wandb.id}", type="model", metadata=dict(facts))
            for file in sorted(path for path in folder.rglob("*") if path.is_file()):
                # Uploaded from its place: a copy of a language model would fill the home folder.
                artifact.add_file(str(file), str(file.relative_to(folder)), policy="immutable")
            self._wandb.log_artifact(artifact)

    def _show(self, media: ValidationMedia) -> dict[str, Any]:
        """Histograms of a head's scores on common bins, and a table of pairs."""
        import wandb

        shown: dict[str, Any] = {}
        for head in dict.fromkeys(name.split("/")[0] for name in media.scores):
            values = {name: part for name, part in media.scores.items() if name.split("/")[0] == head and len(part)}
            if values:
                edges = np.histogram_bin_edges(np.concatenate(list(values.values())), NUM_BINS)
            for name, part in values.items():
                shown[f"eval/scores/{name}"] = wandb.Histogram(np_histogram=np.histogram(part, edges))
        for name, look in media.looks.items():
            # JPEG: frames as PNG take ten times the room.
            self._looks[name] = look if isinstance(look, str) else wandb.Image(look, file_type="jpg")
        if media.pairs:
            rows = [_row(pair, self._looks, media.scores_of) for pair in media.pairs]
            columns = list(dict.fromkeys(column for row in rows for column in row))
            shown["eval/pairs"] = wandb.Table(
                columns=columns, data=[[row.get(name) for name in columns] for row in rows]
            )
        return shown

    def __enter__(self) -> Tracker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._file.close()
        if self._wandb is not None:
            with self._surviving_wandb():
                self._wandb.finish(exit_code=0 if kind is None else 1)

    @contextmanager
    def _surviving_wandb(self) -> Iterator[None]:
        """Goes on without W&B where its own process has ended: SIGTERM may come to that one too, before a run is saved.

        What it raises then depends on where it was.
        """
        try:
            yield
        except Exception as error:
            self._wandb = None
            what = " ".join(f"{type(error).__name__}: {error}".split())
            tqdm.write(f"W&B has failed ({what}) and gets nothing more; metrics.jsonl has all rows")


def _row(
    pair: ValidationPair, looks: Mapping[str, Any], scores_of: Mapping[str, Mapping[str, float]]
) -> dict[str, Any]:
    """A pair as a row of W&B's table; texts have columns of their own, since a column has one type."""
    row: dict[str, Any] = {"prompt": pair.prompt_text}
    for side, name in enumerate(pair.names):
        kind = "text" if isinstance(looks[name], str) else "video"
        row |= {f"name_{side}": name, f"{kind}_{side}": looks[name]}
    for head, score in scores_of[pair.names[0]].items():
        row |= {f"{head}_0": score, f"{head}_1": scores_of[pair.names[1]][head]}
    return row | {f"label {dimension}": label for dimension, label in pair.labels.items()}


def _cut_rows_after(path: Path, step: int) -> None:
    """Keeps the rows up to a step. Those after it may be damaged: the run writes them again."""
    if not path.exists():
        return
    lines = whole_lines(path.read_bytes()).splitlines(keepends=True)
    steps = [_step_of(line) for line in lines]
    end = max((place for place, found in enumerate(steps, start=1) if found is not None and found <= step), default=0)
    if None in steps[:end]:
        raise CheckpointError(
            f"{path}: line {steps.index(None) + 1} is damaged; mend or delete it, then run the same command again"
        )
    write_whole(path, b"".join(lines[:end]))


def _step_of(line: bytes) -> int | None:
    try:
        step = load_json(line)["step"]
    except (ValueError, KeyError, TypeError):
        return None
    return step if type(step) is int else None


def _start_wandb(run: Path, config: TrackingConfig, run_config: Mapping[str, Any], wandb_id: str | None) -> Any:
    if config.wandb == "disabled":
        return None
    # A parent process that uses W&B hands its service down. That one takes a killed run to be still going, and refuses
    # to go on with it.
    os.environ.pop("WANDB_SERVICE", None)
    import wandb

    # Artifacts wait here for their upload; by default they would fill the home folder.
    os.environ.setdefault("WANDB_DATA_DIR", str(run.resolve() / "wandb"))
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
