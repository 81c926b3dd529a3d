"""Scores clips with any number of processes, which share the work through files in one folder.

Each process writes a file of its own there, which no other process changes or removes, and treats as done what it finds
in the files of all processes, of this run or earlier ones. They need no other communication, on one machine or several,
and a process that outlives its run does no harm. An interrupted run continues where it stopped.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
import threading
import time
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, TypeAlias

from safe_rlhf_video.errors import CheckpointError, VideoDecodeError
from safe_rlhf_video.files import flush, lock_folder, make_folder
from safe_rlhf_video.progress import progress_bar
from safe_rlhf_video.reading import load_json, open_regular
from safe_rlhf_video.responses import TextResponse
from safe_rlhf_video.scoring.devices import Shard
from safe_rlhf_video.scoring.score_many import BatchScorer, ScoreRequest, Scores, Source, score_many

# The scores of a clip, or why it cannot be read.
Outcome: TypeAlias = Scores | str

# Often enough that a power cut costs little, rarely enough that a disk does not slow the run down.
SYNC_S = 5.0
# How often a rank shows that it is alive, by the modification time of its part, whatever it is busy with.
BEAT_S = 15.0
# How long rank 0 waits for parts that nobody writes to: many beats, and the delay of caches of a network disk.
SILENCE_S = 300.0
POLL_S = 0.5


def content_key(prompt: str, response: Source) -> str:
    """Names a request by its content: prompt, and text or file with size and modification time, in whole seconds.

    A file that is replaced gets another key; a missing file has a key too.
    """
    state = ""
    if isinstance(response, Path):
        try:
            status = response.stat()
            state = f"{status.st_size} bytes at {int(status.st_mtime)}"
        except OSError:
            state = "missing"
    return _digest([prompt, _describe(response), state])


@contextlib.contextmanager
def hold_parts(folder: Path, shard: Shard) -> Iterator[None]:
    """Keeps the rank 0 of another run off a folder of scores while the block of this rank 0 runs.

    Raises:
        ConfigError: another run holds it.
        CheckpointError: it cannot be written.
    """
    with contextlib.ExitStack() as stack:
        if shard.rank == 0:
            with _writing(folder):
                stack.enter_context(lock_folder(folder))
        yield


def score_in_parts(
    scorer: BatchScorer,
    requests: Sequence[ScoreRequest],
    folder: Path,
    shard: Shard,
    batch_size: int = 64,
    keep_unreadable: bool = False,
) -> dict[str, Outcome] | None:
    """Scores this process's share of the requests into `folder`; rank 0 then waits until all are scored.

    Earlier runs may have had another number of processes. The folder stays when all is done: the next run scores only
    clips that have changed.

    Args:
        requests: the same on every rank, with the keys that `content_key` gives.
        keep_unreadable: record the error of a clip that cannot be read and go on; else it ends the run.

    Returns:
        On rank 0, for all requests: key -> {head: score}, or the error of the clip. None on other ranks.

    Raises:
        CheckpointError: `folder` holds scores of another model or of other requests, cannot be written, or the other
            ranks have stopped writing.
        VideoDecodeError: a clip cannot be read; what was scored before it is kept.
        ConfigError: `batch_size` is not positive.
    """
    named = [[request.prompt, _describe(request.response)] for request in requests]
    header = json.dumps({"model": scorer.fingerprint, "requests": _digest(named)}).encode() + b"\n"
    parts = _Parts(folder, header, {request.key for request in requests}, keep_unreadable)
    parts.refresh()
    is_first = shard.rank == 0
    if is_first and parts.num_replaced:
        print(f"{parts.num_replaced} clips have changed since they were scored; they are scored again")
    todo = [request for request in requests[shard.rank :: shard.world_size] if request.key not in parts.outcomes]
    with contextlib.ExitStack() as stack:
        progress = None
        if is_first:
            progress = stack.enter_context(progress_bar(parts.num_wanted, len(parts.outcomes), "scoring", "clip"))
        seen_s = time.monotonic()
        made = score_many(scorer, todo, batch_size)
        # Closed before the wait, where rank 0 must not take its own beat for a sign of life of others.
        with _Part(folder, header, shard.rank) as part:
            for request, outcome in zip(todo, made, strict=True):
                if isinstance(outcome, VideoDecodeError):
                    if not keep_unreadable:
                        raise outcome
                    part.write({"key": request.key, "error": str(outcome)})
                else:
                    part.write({"key": request.key, **outcome})
                if progress is not None and time.monotonic() - seen_s > POLL_S:
                    parts.refresh()
                    progress.update(len(parts.outcomes) - progress.n)
                    seen_s = time.monotonic()
        if progress is None:
            return None
        for _ in parts.wait(requests, shard.world_size):
            progress.update(len(parts.outcomes) - progress.n)
    return parts.outcomes


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be written ({error.strerror}); give another --out") from error


class _Part:
    """The file that one process writes: a header, then one line per clip. Its time shows that the process is alive."""

    def __init__(self, folder: Path, header: bytes, rank: int) -> None:
        # Unique for every process: one that outlives its run cannot damage the file of another.
        self.path = folder / f"rank-{rank}-{os.getpid()}-{secrets.token_hex(4)}.jsonl"
        self._header = header
        self._ended = threading.Event()
        self._beat = threading.Thread(target=self._show_life, name="beat", daemon=True)
        self._synced_s = time.monotonic()

    def __enter__(self) -> _Part:
        with _writing(self.path):
            make_folder(self.path.parent)
            # Unbuffered: a written line survives a kill of the process.
            self._file = self.path.open("xb", buffering=0)
            self._file.write(self._header)
            flush(self.path.parent)
        self._beat.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._ended.set()
        self._beat.join()
        with contextlib.suppress(OSError):  # must not hide an error that ends the block
            self._sync()
            if self._file.tell() == len(self._header):
                self.path.unlink()
        self._file.close()

    def write(self, row: dict[str, Any]) -> None:
        line = json.dumps(row).encode() + b"\n"
        try:
            if self._file.write(line) != len(line):
                raise OSError(None, "no space left")
            if time.monotonic() - self._synced_s > SYNC_S:
                self._sync()
        except OSError as error:
            raise CheckpointError(
                f"{self.path}: cannot be written ({error.strerror}); make room and run the same command again"
            ) from error

    def _sync(self) -> None:
        os.fsync(self._file.fileno())
        self._synced_s = time.monotonic()

    def _show_life(self) -> None:
        while not self._ended.wait(BEAT_S):
            with contextlib.suppress(OSError):
                os.utime(self.path)


class _Parts:
    """What all processes have written to a folder so far, in this run and earlier ones.

    Attributes:
        outcomes: of the wanted keys.
        num_replaced: number of other keys found, which are of clips that have changed since.
    """

    def __init__(self, folder: Path, header: bytes, wanted: Collection[str], keep_unreadable: bool) -> None:
        self.outcomes: dict[str, Outcome] = {}
        self.num_wanted = len(wanted)
        self._folder = folder
        self._header = header
        self._wanted = wanted
        self._keep_unreadable = keep_unreadable
        self._others: set[str] = set()
        self._num_read: dict[str, int] = {}
        self._seen: dict[str, tuple[int, int]] = {}

    @property
    def num_replaced(self) -> int:
        return len(self._others)

    def refresh(self) -> bool:
        """Reads what was added; returns whether any size or modification time has changed since the last call."""
        seen = {}
        try:
            for path in sorted(self._folder.glob("*.jsonl")):
                with contextlib.suppress(FileNotFoundError):  # an empty part, gone with its process
                    status = path.stat()
                    seen[path.name] = (status.st_size, status.st_mtime_ns)
                    if status.st_size > self._num_read.get(path.name, 0):
                        self._read(path)
        except OSError as error:
            raise CheckpointError(f"{self._folder}: cannot be read ({error.strerror}); give another --out") from error
        is_changed = seen != self._seen
        self._seen = seen
        return is_changed

    def wait(self, requests: Sequence[ScoreRequest], world_size: int) -> Iterator[None]:
        """Reads until all requests have outcomes; yields after each reading."""
        heard_s = time.monotonic()
        while True:
            if self.refresh():
                heard_s = time.monotonic()
            yield
            if len(self.outcomes) == self.num_wanted:
                return
            if time.monotonic() - heard_s > SILENCE_S:
                missing = [place for place, request in enumerate(requests) if request.key not in self.outcomes]
                ranks = ", ".join(map(str, sorted({place % world_size for place in missing})))
                raise CheckpointError(
                    f"{self._folder}: {len(missing)} of {self.num_wanted} clips are missing, those of rank {ranks}, "
                    f"and no rank has written for {SILENCE_S:.0f} s; see what they printed and run the same again"
                )
            time.sleep(POLL_S)

    def _read(self, path: Path) -> None:
        start = self._num_read.get(path.name, 0)
        with open_regular(path) as file:
            file.seek(start)
            content = file.read()
        # A last line without an end is being written, or was when its process was killed.
        for line in content[: content.rfind(b"\n") + 1].splitlines(keepends=True):
            if start == 0:
                if line != self._header:
                    raise CheckpointError(
                        f"{path}: holds scores of another model or of other clips or prompts, or is damaged; delete "
                        f"{self._folder} or give another --out"
                    )
            elif not self._take(line):
                break
            start += len(line)
            self._num_read[path.name] = start

    def _take(self, line: bytes) -> bool:
        """Returns whether the line could be read; if not, a network disk may not have delivered all of it yet."""
        try:
            row = load_json(line)
            key, error = row.pop("key"), row.pop("error", None)
        except (ValueError, KeyError, TypeError, AttributeError):
            return False
        if key not in self._wanted:
            self._others.add(key)
        elif error is None:
            self.outcomes[key] = row
        elif self._keep_unreadable:
            self.outcomes.setdefault(key, error)
        return True


def _describe(response: Source) -> str:
    if not isinstance(response, Path | TextResponse):
        raise TypeError(f"a file of scores is about files and texts, not about a {type(response).__name__}")
    return str(response) if isinstance(response, TextResponse) else os.path.abspath(response)


def _digest(value: list[Any]) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:32]
