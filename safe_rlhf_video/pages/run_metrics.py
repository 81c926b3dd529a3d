"""Reads a run's metrics.jsonl while the run writes it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from safe_rlhf_video.errors import ConfigError
from safe_rlhf_video.files import require_path
from safe_rlhf_video.reading import load_json, open_regular


@dataclass
class Series:
    """One metric; None is a figure that was not finite."""

    steps: list[int] = field(default_factory=list)
    values: list[float | None] = field(default_factory=list)


class RunMetrics:
    """The rows that a run has written so far; `refresh` reads only what is new.

    Attributes:
        name: what the run is called.
        series: metric -> its values.
        num_rows: whole rows read.
        num_unreadable: lines that are no row; the last one, which may be half written, is not counted.
    """

    def __init__(self, folder: Path, name: str):
        """Nothing is read yet; the folder need not hold a row so far.

        Raises:
            ConfigError: there is no such folder.
        """
        if not folder.is_dir():
            require_path(folder, ConfigError, "give a run folder, the `out` of its training")
            raise ConfigError(f"{folder}: is a file; give a run folder, the `out` of its training")
        self.name = name
        self._path = folder / "metrics.jsonl"
        self._forget()

    @property
    def state(self) -> tuple[int, int]:
        """File and position up to which it was read: equal states have equal series."""
        return self._file, self._position

    def _forget(self) -> None:
        self.series: dict[str, Series] = {}
        self.num_rows = self.num_unreadable = 0
        self.last_step = 0
        self._position, self._file = 0, 0

    def refresh(self) -> None:
        """Read on to the last whole line.

        Raises:
            ConfigError: the file cannot be read.
        """
        try:
            with open_regular(self._path) as file:
                file.seek(0, 2)
                # A resumed run writes the file anew, without the rows that it repeats.
                inode = self._path.stat().st_ino
                if inode != self._file or file.tell() < self._position:
                    self._forget()
                    self._file = inode
                file.seek(self._position)
                content = file.read()
        except FileNotFoundError:
            self._forget()
            return
        except OSError as error:
            raise ConfigError(f"{self._path}: cannot be read ({error.strerror}); give access to it") from error
        whole = content[: content.rfind(b"\n") + 1]
        self._position += len(whole)
        for line in whole.splitlines():
            self._add(line)

    def _add(self, line: bytes) -> None:
        try:
            row = load_json(line)
            step = row.pop("step")
            if not _is_step(step) or not all(_is_figure(value) for value in row.values()):
                raise ValueError("no row of figures")
        except (ValueError, KeyError, AttributeError, TypeError):
            self.num_unreadable += 1
            return
        self.num_rows += 1
        self.last_step = step
        for name, value in row.items():
            series = self.series.setdefault(name, Series())
            series.steps.append(step)
            series.values.append(float(value) if value is not None and math.isfinite(value) else None)


def _is_step(value: object) -> bool:
    return type(value) is int and 0 <= value <= 10**15  # a larger one is damage, and no plot can show it


def _is_figure(value: object) -> bool:
    # An integer may be too large for a float.
    return value is None or isinstance(value, float) or (type(value) is int and abs(value) < 10**300)


def open_runs(folders: Sequence[Path]) -> list[RunMetrics]:
    """Runs called by their folders' names, or where two have the same by the whole paths.

    Raises:
        ConfigError: a folder is not there, or given twice.
    """
    resolved = [folder.resolve() for folder in folders]
    if len(set(resolved)) < len(resolved):
        raise ConfigError(f"{', '.join(map(str, folders))}: the same run is given twice; give each run once")
    names = [folder.name for folder in resolved]
    if len(set(names)) < len(names):
        names = [str(folder) for folder in folders]
    return [RunMetrics(folder, name) for folder, name in zip(folders, names, strict=True)]


def read_rows(runs: Sequence[RunMetrics]) -> None:
    """Reads all runs.

    Raises:
        ConfigError: one has no row yet.
    """
    for run in runs:
        run.refresh()
        if not run.num_rows:
            raise ConfigError(f"{run.name}: no row in metrics.jsonl to draw; wait for the run's first step")
