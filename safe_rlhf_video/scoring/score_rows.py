"""Scores the rows of a file and writes their choices, orders or scores to another."""

from __future__ import annotations

import io
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from safe_rlhf_video.errors import ConfigError, SampleError, VideoDecodeError
from safe_rlhf_video.files import write_whole
from safe_rlhf_video.responses import TextResponse
from safe_rlhf_video.scoring.devices import choose_device, read_shard
from safe_rlhf_video.scoring.input_rows import BadRow, InputRow, read_rows
from safe_rlhf_video.scoring.score_many import ScoreRequest, Scores
from safe_rlhf_video.scoring.score_parts import Outcome, content_key, hold_parts, score_in_parts

if TYPE_CHECKING:
    from safe_rlhf_video.scoring.decisions import PairScore, Ranking
    from safe_rlhf_video.scoring.scorer import Scorer

# (prompt, response) -> key of its request
Keys = Mapping[tuple[str, Path | TextResponse], str]


@dataclass(frozen=True)
class RowScoring:
    """What to score, and how.

    Attributes:
        model: folders of the models: reward, cost, moderation.
        input: rows as JSON lines or Parquet, or a SafeSora config.
        out: scores as JSON lines or Parquet.
        video_dir: what the paths of rows are relative to, in place of the input's folder; of a SafeSora config, where
            its clips are.
        bad_rows: refuse a wrong field or an unreadable clip, or leave its rows out.
        lagrange_multiplier, cost_limit: as of `Scorer.score_pair`.
        backbone: the folder of the backbone, if it has moved since training.
        batch_size: clips scored at once, in each process.
        workers: decoding processes of each process.
    """

    model: Sequence[str]
    input: Path
    out: Path
    video_dir: str | None = None
    bad_rows: Literal["refuse", "drop"] = "refuse"
    lagrange_multiplier: float | None = None
    cost_limit: float | None = None
    backbone: str | None = None
    batch_size: int = 64
    workers: int = 2

    def __post_init__(self) -> None:
        if self.out.suffix not in (".jsonl", ".parquet"):
            raise ConfigError(f"--out {self.out}: expected a name that ends in .jsonl or .parquet")
        if self.out.resolve() == self.input.resolve():
            raise ConfigError(f"{self.out}: is both --input and --out; give another file as --out")


@dataclass(frozen=True)
class RowsScored:
    """What a process did: a sentence about it, and the number of rows left out."""

    message: str
    num_left_out: int = 0


def score_rows(task: RowScoring) -> RowsScored:
    """Scores this process's share of the clips; rank 0 then waits for the others and writes the output.

    Raises:
        SampleError, VideoDecodeError: a row or a clip is bad and `bad_rows` is "refuse", or no row is good.
        ConfigError: the output cannot be written, or a value is out of range.
        CheckpointError: a model cannot be loaded, or the folder of scores is about other models or rows.
    """
    rows, bad = read_rows(task.input, task.video_dir)
    if bad and task.bad_rows == "refuse":
        raise SampleError(f"{bad[0].error}; {len(bad)} such rows are left out with --bad_rows drop")
    if not rows:
        raise SampleError(
            f"{task.input}: holds no pair and no clip{f' but {len(bad)} bad rows, the first: ' if bad else ''}"
            f"{bad[0].error if bad else '; there is nothing to score'}"
        )
    if rows[0].kind == "clip" and (task.lagrange_multiplier is not None or task.cost_limit is not None):
        raise ConfigError(
            f"{task.input}: holds single clips, which are scored and not weighed; leave out --lagrange_multiplier and "
            "--cost_limit"
        )
    keys, requests = _make_requests(rows, task)
    # Torch takes seconds to import, and wrong rows are reported at once.
    from safe_rlhf_video.scoring.scorer import Scorer

    shard, parts = read_shard(), task.out.with_name(f"{task.out.name}.parts")
    with Scorer.from_pretrained(
        *task.model, device=choose_device(shard), backbone=task.backbone, workers=task.workers
    ) as scorer:
        if rows[0].kind != "clip":  # a wrong value is reported before any work
            for num in {len(row.responses) for row in rows}:
                scorer.resolve_trade_off(num, task.lagrange_multiplier, task.cost_limit)
        with hold_parts(parts, shard):
            outcomes = score_in_parts(
                scorer, requests, parts, shard, task.batch_size, keep_unreadable=task.bad_rows == "drop"
            )
            if outcomes is not None:
                return _write_rows(rows, bad, keys, outcomes, scorer, task)
    return RowsScored(f"rank {shard.rank} of {shard.world_size}: its clips are scored; rank 0 writes {task.out}")


def _write_rows(
    rows: Sequence[InputRow],
    bad: list[BadRow],
    keys: Keys,
    outcomes: Mapping[str, Outcome],
    scorer: Scorer,
    task: RowScoring,
) -> RowsScored:
    """Judges the rows by what their clips score, and writes the output."""
    results: list[dict[str, Any]] = []
    for row in rows:
        found = [outcomes[keys[row.prompt, response]] for response in row.responses.values()]
        reasons = [one for one in found if isinstance(one, str)]
        if reasons:
            bad.append(BadRow(row.number, row.ids, VideoDecodeError(reasons[0])))
        else:
            results.append(_judge_row(row, [one for one in found if isinstance(one, dict)], scorer, task))
    side_file = _write_results(results, sorted(bad, key=lambda row: row.number), task)
    message = f"{task.out}: {_summarise(results, len(outcomes))}"
    if scorer.no_zero:
        message += f"; {scorer.no_zero}, and is_safe is null"
    if not bad:
        return RowsScored(message)
    num_rows = len(results) + len(bad)
    return RowsScored(f"{message}; {len(bad)} of {num_rows} rows are bad and left out, {side_file} says why", len(bad))


def _make_requests(rows: Sequence[InputRow], task: RowScoring) -> tuple[Keys, list[ScoreRequest]]:
    """Returns a request for each distinct prompt and response, and the keys of the requests."""
    keys: dict[tuple[str, Path | TextResponse], str] = {}
    requests: dict[str, ScoreRequest] = {}
    for row in rows:
        for field, response in row.responses.items():
            if (row.prompt, response) in keys:
                continue
            if task.bad_rows == "refuse" and isinstance(response, Path) and not response.is_file():
                raise VideoDecodeError(
                    f"{task.input} row {row.number} field {field}: {response}: no such file; put it there, or leave "
                    "its rows out with --bad_rows drop"
                )
            key = keys[row.prompt, response] = content_key(row.prompt, response)
            requests.setdefault(key, ScoreRequest(key, row.prompt, response))
    return keys, list(requests.values())


def _judge_row(row: InputRow, scores: Sequence[Scores], scorer: Scorer, task: RowScoring) -> dict[str, Any]:
    """Returns the output of a row: its ids and clips, the choice, order or scores, and harms if a head has them."""
    responses = list(row.responses.values())
    shown = [response.text if isinstance(response, TextResponse) else str(response) for response in responses]
    result: dict[str, Any] = {**row.ids, "prompt": row.prompt}
    harms: list[dict[str, Any]] = []
    if scorer.can_moderate:
        judged_harms = [
            scorer.judge_harms(one, isinstance(response, TextResponse))
            for one, response in zip(scores, responses, strict=True)
        ]
        if any(one.probabilities for one in judged_harms):
            harms = [{"flags": list(one.flags), "probabilities": dict(one.probabilities)} for one in judged_harms]
    if row.kind == "clip":
        is_safe: dict[str, Any] = {}
        if "cost" in scores[0]:
            verdict = None if scorer.no_zero else scores[0]["cost"] <= 0.0
            is_safe = {"is_safe": verdict, "is_safe_reason": scorer.no_zero}
        return {**result, "video": shown[0], **scores[0], **is_safe, **({"harms": harms[0]} if harms else {})}
    trade_off = scorer.resolve_trade_off(len(responses), task.lagrange_multiplier, task.cost_limit)
    from safe_rlhf_video.scoring.decisions import judge_pair, judge_ranking

    judged: PairScore | Ranking
    if row.kind == "pair":
        result |= zip(row.responses, shown, strict=True)
        pairs = {head: (score, scores[1][head]) for head, score in scores[0].items()}
        judged = judge_pair(pairs, trade_off, scorer.calibration.heads, no_zero=scorer.no_zero)
    else:
        result["videos"] = shown
        table = {head: [one[head] for one in scores] for head in scores[0]}
        judged = judge_ranking(table, trade_off, scorer.calibration.heads, no_zero=scorer.no_zero)
    fields = asdict(judged)
    del fields["model"]  # the same in every row
    return {**result, **fields, **({"harms": harms} if harms else {})}


def _write_results(results: list[dict[str, Any]], bad: Sequence[BadRow], task: RowScoring) -> Path:
    """Writes the output, and before it the file about bad rows, whose path it returns."""
    side_file = task.out.with_name(f"{task.out.name}.bad.jsonl")
    lines = [{"row": row.number, **row.ids, "reason": str(row.error)} for row in bad]
    try:
        if bad:
            write_whole(side_file, _as_lines(lines))
        else:
            side_file.unlink(missing_ok=True)
        if results:
            write_whole(task.out, _as_parquet(results) if task.out.suffix == ".parquet" else _as_lines(results))
    except OSError as error:
        raise ConfigError(
            f"{task.out}: cannot be written ({error.strerror}), the scores are kept; make room and run the same again"
        ) from error
    if not results:
        raise SampleError(f"{task.input}: all {len(bad)} rows are bad; {side_file} says why")
    return side_file


def _summarise(results: Sequence[Mapping[str, Any]], num_clips: int) -> str:
    first = results[0]
    decided = "" if first.get("decided_by") in (None, "reward and cost") else f"; decided by {first['decided_by']}"
    if "order" in first:
        done = "scored" if first["order"] is None else "put in order"
        return f"{len(results)} lists of {num_clips} clips {done}{decided}"
    if "preferred" in first:
        if first["preferred"] is None:
            return f"{len(results)} pairs of {num_clips} clips scored{decided}"
        counts = Counter(row["preferred"] for row in results)
        preferred = ", ".join(f"{name} {counts[name]}" for name in ("v1", "v2", "tie"))
        return f"{len(results)} pairs of {num_clips} clips scored; preferred: {preferred}{decided}"
    return f"{len(results)} clips scored"


def _as_lines(rows: Sequence[Mapping[str, Any]]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def _as_parquet(results: Sequence[Mapping[str, Any]]) -> bytes:
    import pyarrow
    import pyarrow.parquet

    # A column for each name of any row: pyarrow takes those of the first row alone, and a text may have no harms.
    names = dict.fromkeys(name for row in results for name in row)
    # Parquet has no struct without fields: a value with none is null.
    rows = [{name: None if (value := row.get(name)) == {} else value for name in names} for row in results]
    buffer = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), buffer)
    return buffer.getvalue()
