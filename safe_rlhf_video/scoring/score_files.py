"""Scores of many clips, kept in files while they are made: an interrupted run goes on where it stopped.

`score_to_file` keeps them in one file. `score_in_parts` shares the work among processes, on one machine or on several
that see the same folder: each writes files of its own there, which nobody else ever changes or removes, and takes for
done what it finds in those of all others, of this run or of earlier ones. They need no other way to talk, and a process
that outlives its run does no harm.
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
from typing import TYPE_CHECKING, Any, TypeAlias

from safe_rlhf_video.errors import CheckpointError, VideoDecodeError
from safe_rlhf_video.progress import progress_bar
from safe_rlhf_video.responses import TextResponse
from safe_rlhf_video.scoring.devices import Shard
from safe_rlhf_video.scoring.score_many import (
    ScoreRequest,
    Scores,
    Source,
    raise_unreadable,
    read_from_store,
    score_many,
)
from safe_rlhf_video.video.frame_store import FrameStore

if TYPE_CHECKING:
    from safe_rlhf_video.scoring.model_scorer import ModelScorer

# What is scored for a clip, or why it cannot be read.
Outcome: TypeAlias = Scores | str

# Often enough that a power cut costs little, seldom enough that no disk is kept waiting.
SYNC_S = 5.0
# A rank says that it is there by the time of its part, whatever it is busy with.
BEAT_S = 15.0
# How long rank 0 waits for parts that nobody writes to: many beats, and what caches of a network disk hold back.
SILENCE_S = 300.0
POLL_S = 0.5


def content_key(prompt: str, response: Source) -> str:
    """Names a request by what is scored: prompt, and text or file with size and time of change, in whole seconds.

    A file that is replaced has another key, one that is missing has one too.
    """
    state = ""
    if isinstance(response, Path):
        try:
            status = response.stat()
            state = f"{status.st_size} bytes at {int(status.st_mtime)}"
        except OSError:
            state = "missing"
    return _digest([prompt, _describe(response), state])


def score_to_file(
    scorer: ModelScorer,
    requests: Sequence[ScoreRequest],
    out: Path,
    batch_size: int = 64,
    description: str = "scoring",
    store: FrameStore | None = None,
) -> dict[str, Scores]:
    """Score all requests, appending a line a clip to `out`; lines that are there already are not made again.

    Args:
        store: clips that it holds under a request's key are read from it, not decoded.

    Returns:
        key -> {head: score}.

    Raises:
        CheckpointError: `out` holds scores of another model or of other clips, or is another file; it stays as it is.
        VideoDecodeError: a clip cannot be read; what was scored before it is kept.
    """
    header = {"model": scorer.fingerprint, "requests": _fingerprint(requests)}
    if store is not None and store.codec_name != "raw":  # raw frames are those that decoding gives
        header["frames"] = store.codec_name
    scores = _read_scores(out, header)
    todo = [request for request in requests if request.key not in scores]
    out.parent.mkdir(parents=True, exist_ok=True)
    with out.open("a", encoding="utf-8") as file:
        if not scores:
            file.truncate(0)
            file.write(json.dumps(header) + "\n")
        made = raise_unreadable(score_many(scorer, read_from_store(todo, store), batch_size))
        with progress_bar(len(requests), len(requests) - len(todo), description, "clip") as progress:
            for request, values in zip(todo, made, strict=True):
                scores[request.key] = values
                file.write(json.dumps({"key": request.key, **values}) + "\n")
                progress.update()
    return scores


def score_in_parts(
    scorer: ModelScorer,
    requests: Sequence[ScoreRequest],
    folder: Path,
    shard: Shard,
    batch_size: int = 64,
    keep_unreadable: bool = False,
) -> dict[str, Outcome] | None:
    """Score this process's share of the requests into `folder`; rank 0 then waits until all are scored.

    Another number of processes may have scored some of them before. The folder stays when all is done: run again, it
    scores only clips that have changed.

    Args:
        requests: the same on every rank, with the keys that `content_key` gives.
        keep_unreadable: note what is wrong with a clip that cannot be read and go on; else it ends the run.

    Returns:
        key -> {head: score}, or what is wrong with the clip, of all requests; None but on rank 0.

    Raises:
        CheckpointError: `folder` holds scores of another model or of other requests, cannot be written, or the other
            ranks have fallen silent.
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
        # Left before the wait: rank 0 listens to the others then, not to its own beat.
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


class _Part:
    """The file that one process writes: a header, then a line a clip. Its time tells that the process is alive."""

    def __init__(self, folder: Path, header: bytes, rank: int) -> None:
        # A name of its own for every process: one that outlives its run can damage no other's file.
        self.path = folder / f"rank-{rank}-{os.getpid()}-{secrets.token_hex(4)}.jsonl"
        self._header = header
        self._ended = threading.Event()
        self._beat = threading.Thread(target=self._show_life, name="beat", daemon=True)
        self._synced_s = time.monotonic()

    def __enter__(self) -> _Part:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            # Unbuffered: a line that is written outlives the process.
            self._file = self.path.open("xb", buffering=0)
            self._file.write(self._header)
        except OSError as error:
            raise CheckpointError(f"{self.path}: cannot be written ({error.strerror}); give another --out") from error
        self._beat.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._ended.set()
        self._beat.join()
        with contextlib.suppress(OSError):  # an error that is on its way says more
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
    """What all processes have written to a folder so far, in this run and in those before it.

    Attributes:
        outcomes: of the wanted keys.
        num_replaced: other keys that were found: of clips that have changed since.
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
        """Read what was added; returns whether anything has changed since the last time, a time of change included."""
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
        """Read on until all is there; yields whenever that may take longer."""
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
                    f"and nobody has written for {SILENCE_S:.0f} s; see what they printed and run the same again"
                )
            time.sleep(POLL_S)

    def _read(self, path: Path) -> None:
        start = self._num_read.get(path.name, 0)
        with path.open("rb") as file:
            file.seek(start)
            content = file.read()
        # Without an end, the last line is being written, or was when its process was killed.
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
        """Whether the line could be read; one that could not may be whole on the disk of its writer alone, as yet."""
        try:
            row = json.loads(line)
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


def _read_scores(out: Path, header: dict[str, str]) -> dict[str, Scores]:
    if not out.exists():
        return {}
    try:
        content = out.read_bytes()
        *lines, cut_short = content.split(b"\n")
        if not lines and json.dumps(header).encode().startswith(cut_short):  # killed before the first line was whole
            return {}
        # The file is touched only after its header says that it is ours.
        if not lines or json.loads(lines[0]) != header:
            raise CheckpointError(
                f"{out}: holds scores of another model or of other clips or frames; delete it or give another --out"
            )
        rows = [json.loads(line) for line in lines[1:]]
        scores = {row.pop("key"): row for row in rows}
    except OSError as error:
        raise CheckpointError(f"{out}: cannot be read ({error.strerror}); give another --out") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{out}: is no file of scores, or damaged; delete it or give another --out") from error
    if cut_short:  # by a kill
        os.truncate(out, len(content) - len(cut_short))
    return scores


def _fingerprint(requests: Sequence[ScoreRequest]) -> str:
    digest = hashlib.sha256()
    for request in requests:
        digest.update(json.dumps([request.key, request.prompt, str(request.response)]).encode())
    return digest.hexdigest()[:32]


def _describe(response: Source) -> str:
    if not isinstance(response, Path | TextResponse):
        raise TypeError(f"a file of scores is about files and texts, not about a {type(response).__name__}")
    return str(response) if isinstance(response, TextResponse) else os.path.abspath(response)


def _digest(value: list[Any]) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:32]
