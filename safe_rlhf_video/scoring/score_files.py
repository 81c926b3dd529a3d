"""Scores clips into a file, so that an interrupted run continues where it stopped."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import IO

from safe_rlhf_video.errors import CheckpointError
from safe_rlhf_video.files import flush, lock, make_folder, whole_lines
from safe_rlhf_video.progress import progress_bar
from safe_rlhf_video.reading import load_json, read_regular
from safe_rlhf_video.scoring.score_many import (
    BatchScorer,
    ScoreRequest,
    Scores,
    raise_unreadable,
    read_from_store,
    score_many,
)
from safe_rlhf_video.video.frame_store import FrameStore


def score_to_file(
    scorer: BatchScorer,
    requests: Sequence[ScoreRequest],
    out: Path,
    batch_size: int = 64,
    description: str = "scoring",
    store: FrameStore | None = None,
) -> dict[str, Scores]:
    """Scores all requests and appends one line per clip to `out`; clips that have a line already are not scored again.

    Args:
        store: clips that it holds under the key of a request are read from it, not decoded.

    Returns:
        key -> {head: score}.

    Raises:
        CheckpointError: `out` holds scores of another model or of other clips, or is another file; it stays as it is.
        VideoDecodeError: a clip cannot be read; what was scored before it is kept.
    """
    header = {"model": scorer.fingerprint, "requests": _fingerprint(requests, store)}
    if store is not None and store.codec_name != "raw":  # raw frames equal decoded ones
        header["frames"] = store.codec_name
    with _open(out) as file:
        lock(file, out)
        scores = _read_scores(out, header)
        flush(out.parent)
        todo = [request for request in requests if request.key not in scores]
        if not scores:
            file.truncate(0)
            file.write(json.dumps(header) + "\n")
        made = raise_unreadable(score_many(scorer, read_from_store(todo, store), batch_size))
        try:
            with progress_bar(len(requests), len(requests) - len(todo), description, "clip") as progress:
                for request, values in zip(todo, made, strict=True):
                    scores[request.key] = values
                    file.write(json.dumps({"key": request.key, **values}) + "\n")
                    progress.update()
        finally:
            file.flush()
            os.fsync(file.fileno())
    return scores


def _open(out: Path) -> IO[str]:
    try:
        make_folder(out.parent)
        return out.open("a", encoding="utf-8")
    except OSError as error:
        raise CheckpointError(f"{out}: cannot be written ({error.strerror}); give another --out") from error


def _read_scores(out: Path, header: dict[str, str]) -> dict[str, Scores]:
    try:
        content = read_regular(out)
        whole = whole_lines(content)
        lines = whole.splitlines()
        # Interrupted before the first line was whole.
        if not lines and json.dumps(header).encode().startswith(content.partition(b"\0")[0]):
            return {}
        # The file is touched only after its header says that it is ours.
        if not lines or load_json(lines[0]) != header:
            raise CheckpointError(
                f"{out}: holds scores of another model or of other clips or frames; delete it or give another --out"
            )
        rows = [load_json(line) for line in lines[1:]]
        scores = {row.pop("key"): row for row in rows}
    except OSError as error:
        raise CheckpointError(f"{out}: cannot be read ({error.strerror}); give another --out") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{out}: is no file of scores, or damaged; delete it or give another --out") from error
    if len(whole) < len(content):  # by a kill or a power cut
        os.truncate(out, len(whole))
    return scores


def _fingerprint(requests: Sequence[ScoreRequest], store: FrameStore | None) -> str:
    """Identifies what is scored; clips that were made anew under the same names have other sizes."""
    digest = hashlib.sha256()
    for request in requests:
        fields = [request.key, request.prompt, str(request.response), _file_size(request, store)]
        digest.update(json.dumps(fields).encode())
    return digest.hexdigest()[:32]


def _file_size(request: ScoreRequest, store: FrameStore | None) -> int | None:
    """Bytes of the file of a clip, also if its frames come from the store; None for a text, or without a file."""
    if store is not None and request.key in store:
        return store.file_of(request.key)[0]
    try:
        return request.response.stat().st_size if isinstance(request.response, Path) else None
    except OSError:  # reading it says why
        return None
