"""Score generations: pairs get a choice, lists of candidates an order, single clips their scores.

    python scripts/score.py --model REWARD_DIR COST_DIR --input pairs.jsonl --out scores.jsonl
    deepspeed --num_gpus 8 scripts/score.py --model REWARD_DIR COST_DIR --input pairs.parquet --out scores.parquet

The input is JSON lines or Parquet with `prompt`, and `v1` and `v2`, `videos` or `video` (paths, relative to the file),
or a SafeSora config (.json, .json.gz) of pairs or of videos. The output, in the order of the input, is JSON lines or
Parquet as its name ends. Every clip is scored once, in OUT.parts; an interrupted run goes on where it stopped, with any
number of processes. docs/scoring.md tells more.
"""

import argparse
import io
import json
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

from pydantic import Field
from typing_extensions import TypedDict

from safe_rlhf_video.cli import Parser
from safe_rlhf_video.contracts import OPEN, check_fields
from safe_rlhf_video.data.datasets import PairDataset, PromptDataset, load_any
from safe_rlhf_video.data.record_fields import FilePath, NonEmptyText, fail
from safe_rlhf_video.errors import ConfigError, SafeRLHFVideoError, SampleError, VideoDecodeError
from safe_rlhf_video.files import write_whole
from safe_rlhf_video.responses import TextResponse

if TYPE_CHECKING:
    from safe_rlhf_video.scoring.decisions import TradeOff
    from safe_rlhf_video.scoring.scorer import Scorer

Kind = Literal["clip", "pair", "list"]
# What a row of each kind is known by, and how it is called.
ID_OF_KIND: dict[Kind, str] = {"clip": "video_id", "pair": "pair_id", "list": "prompt_id"}
NAME_OF_KIND: dict[Kind, str] = {"clip": "a clip", "pair": "a pair", "list": "a list of videos"}
FIELDS = ("prompt", "v1", "v2", "video", "videos", *ID_OF_KIND.values())

# The exit code where rows were left out, as --bad_rows drop allows.
ROWS_LEFT_OUT = 2


class ClipFields(TypedDict):
    """What a row with one clip needs."""

    __pydantic_config__ = OPEN  # type: ignore[misc]

    prompt: NonEmptyText
    video: FilePath


class PairFields(TypedDict):
    """What a row with two clips needs."""

    __pydantic_config__ = OPEN  # type: ignore[misc]

    prompt: NonEmptyText
    v1: FilePath
    v2: FilePath


class ListFields(TypedDict):
    """What a row with candidates needs."""

    __pydantic_config__ = OPEN  # type: ignore[misc]

    prompt: NonEmptyText
    videos: Annotated[list[FilePath], Field(min_length=1)]


FIELDS_OF_KIND: dict[Kind, type] = {"clip": ClipFields, "pair": PairFields, "list": ListFields}


class Row(NamedTuple):
    """What a row asks: one response to judge, two to choose between, or some to put in order; ids go to the output.

    The responses are named by their fields: `video`; `v1` and `v2`; `videos[0]` and so on.
    """

    number: int
    ids: dict[str, str]
    prompt: str
    responses: dict[str, Path | TextResponse]
    kind: Kind


class BadRow(NamedTuple):
    """A row that cannot be judged, and why."""

    number: int
    ids: dict[str, str]
    error: SafeRLHFVideoError


def main() -> None:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", nargs="+", required=True, metavar="DIR", help="a reward and a cost folder")
    parser.add_argument("--input", type=Path, required=True, help="rows.jsonl, rows.parquet or a SafeSora config")
    parser.add_argument("--out", type=Path, required=True, help="scores.jsonl or scores.parquet")
    parser.add_argument("--video_dir", help="where a SafeSora config's clips lie, if not where the config says")
    parser.add_argument(
        "--bad_rows",
        choices=("refuse", "drop"),
        default="refuse",
        help="what becomes of rows with a wrong field or an unreadable clip: an error, or left out and told in "
        "OUT.bad.jsonl, with exit code 2",
    )
    parser.add_argument(
        "--lagrange_multiplier",
        type=float,
        help="lambda, the price of cost in reward; by default the stored one, else 1",
    )
    parser.add_argument(
        "--cost_limit", type=float, help="d, the cost that is allowed; by default that of the stored lambda, else 0"
    )
    parser.add_argument("--backbone", help="the backbone's folder, if it lies elsewhere than in training")
    parser.add_argument("--batch_size", type=int, default=64, help="clips scored at once, in each process")
    parser.add_argument("--workers", type=int, default=2, help="decoding processes beside each process")
    parser.add_argument("--local_rank", help=argparse.SUPPRESS)  # from launchers; the environment says the same
    arguments = parser.parse_args()

    if arguments.out.suffix not in (".jsonl", ".parquet"):
        raise ConfigError(f"--out {arguments.out}: expected a name that ends in .jsonl or .parquet")
    if arguments.out.resolve() == arguments.input.resolve():
        raise ConfigError(f"{arguments.out}: is both --input and --out; give another file as --out")
    rows, bad = read_rows(arguments.input, arguments.video_dir)
    if bad and arguments.bad_rows == "refuse":
        raise SampleError(f"{bad[0].error}; {len(bad)} such rows are left out with --bad_rows drop")
    score_rows(rows, bad, arguments)


def read_rows(path: Path, video_dir: str | None = None) -> tuple[list[Row], list[BadRow]]:
    """The rows of a file, and those that are wrong. A SafeSora config is right as a whole, or raises a SampleError."""
    if path.name.endswith((".json", ".json.gz")):
        return read_config(path, video_dir), []
    rows: list[Row] = []
    bad: list[BadRow] = []
    records = read_parquet(path) if path.suffix == ".parquet" else read_lines(path)
    for number, record in records:
        where = f"{path} row {number}"
        ids: dict[str, str] = {}
        try:
            if isinstance(record, SampleError):
                raise record
            row = parse_row(record, number, path.parent, where, ids)
            if rows and row.kind != rows[0].kind:
                kinds = [NAME_OF_KIND[one.kind] for one in (row, rows[0])]
                raise SampleError(f"{where}: {kinds[0]}, but row {rows[0].number} is {kinds[1]}; make it two files")
            rows.append(row)
        except SampleError as error:
            bad.append(BadRow(number, ids, error))
    return rows, bad


def read_config(path: Path, video_dir: str | None) -> list[Row]:
    dataset = load_any(path, video_dir=video_dir)
    if isinstance(dataset, PromptDataset):
        raise SampleError(f"{path}: holds prompts alone; give pairs or videos")
    clips = [video for video in dataset.videos if video.response_text is None]
    responses: dict[str, Path | TextResponse] = dict(
        zip((video.name for video in clips), dataset.video_files(clips), strict=True)
    )
    for video in dataset.videos:
        if video.response_text is not None:
            responses[video.name] = TextResponse(video.response_text)
    if isinstance(dataset, PairDataset):
        return [
            Row(number, {"pair_id": pair.pair_id}, pair.prompt_text,
                {"v1": responses[pair.video_0.name], "v2": responses[pair.video_1.name]}, "pair")
            for number, pair in enumerate(dataset.pairs)
        ]  # fmt: skip
    return [
        Row(number, {"prompt_id": video.prompt_id, "video_id": video.video_id}, video.prompt_text,
            {"video": responses[video.name]}, "clip")
        for number, video in enumerate(dataset.videos)
    ]  # fmt: skip


def read_lines(path: Path) -> Iterator[tuple[int, Any]]:
    """Row numbers from 0, blank lines counted, and rows; a SampleError in the place of what is no JSON."""
    try:
        # Not splitlines(): a prompt may hold other line ends, as U+2028.
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise SampleError(f"{path}: cannot be read ({error}); give JSON lines, Parquet or a SafeSora config") from error
    for number, line in enumerate(lines):
        if not line.strip():
            continue
        try:
            yield number, json.loads(line)
        except ValueError as error:
            yield number, SampleError(f"{path} row {number}: not JSON ({error}); write one object a line")


def read_parquet(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            columns = [name for name in FIELDS if name in file.schema_arrow.names]
            records = file.read(columns).to_pylist()
    except (OSError, pyarrow.ArrowException) as error:
        raise SampleError(f"{path}: cannot be read as Parquet ({error}); write it anew") from error
    yield from enumerate(records)


def parse_row(record: Any, number: int, folder: Path, where: str, ids: dict[str, str]) -> Row:
    """Check a row and fill its ids in, first, so that a wrong one can be named by them."""
    if not isinstance(record, dict):
        fail(where, "prompt", "an object with a prompt", record)
    record = {name: value for name, value in record.items() if value is not None}
    fields_of: dict[Kind, set[str]] = {"clip": {"video"}, "list": {"videos"}, "pair": {"v1", "v2"}}
    given = [kind for kind, fields in fields_of.items() if fields & record.keys()]
    kind = given[-1] if given else "pair"
    id_name = ID_OF_KIND[kind]
    name = record.get(id_name, number)
    if isinstance(name, bool) or not isinstance(name, str | int):
        fail(where, id_name, "a string or a whole number", name)
    ids[id_name] = str(name)
    if len(given) > 1:
        raise SampleError(f"{where}: has {' and '.join(NAME_OF_KIND[kind] for kind in given)}; give one of them")
    checked = check_fields(FIELDS_OF_KIND[kind], record, where, SampleError)
    prompt = checked.pop("prompt")
    if not prompt.strip():
        fail(where, "prompt", "a text", prompt)
    if kind == "list":
        checked = {f"videos[{place}]": path for place, path in enumerate(checked["videos"])}
    return Row(number, ids, prompt, {side: folder / path for side, path in checked.items()}, kind)


def score_rows(rows: list[Row], bad: list[BadRow], arguments: argparse.Namespace) -> None:
    from safe_rlhf_video.scoring.devices import choose_device, read_shard
    from safe_rlhf_video.scoring.score_files import content_key, score_in_parts
    from safe_rlhf_video.scoring.score_many import ScoreRequest
    from safe_rlhf_video.scoring.scorer import Scorer

    if not rows:
        raise SampleError(
            f"{arguments.input}: holds no pair and no clip{f' but {len(bad)} bad rows, the first: ' if bad else ''}"
            f"{bad[0].error if bad else '; there is nothing to score'}"
        )
    keys: dict[tuple[str, Path | TextResponse], str] = {}
    requests: dict[str, ScoreRequest] = {}
    for row in rows:
        for side, response in row.responses.items():
            if (row.prompt, response) in keys:
                continue
            if arguments.bad_rows == "refuse" and isinstance(response, Path) and not response.is_file():
                raise VideoDecodeError(
                    f"{arguments.input} row {row.number} field {side}: {response}: no such file; put it there, or "
                    "leave its rows out with --bad_rows drop"
                )
            key = keys[row.prompt, response] = content_key(row.prompt, response)
            requests.setdefault(key, ScoreRequest(key, row.prompt, response))

    shard = read_shard()
    with Scorer.from_pretrained(
        *arguments.model, device=choose_device(shard), backbone=arguments.backbone, workers=arguments.workers
    ) as scorer:
        trade_off = None
        if rows[0].kind != "clip":
            trade_off = scorer.resolve_trade_off(arguments.lagrange_multiplier, arguments.cost_limit)
        outcomes = score_in_parts(
            scorer,
            list(requests.values()),
            arguments.out.with_name(f"{arguments.out.name}.parts"),
            shard,
            arguments.batch_size,
            keep_unreadable=arguments.bad_rows == "drop",
        )
    if outcomes is None:
        print(f"rank {shard.rank} of {shard.world_size}: its clips are scored; rank 0 writes {arguments.out}")
        return

    results: list[dict[str, Any]] = []
    for row in rows:
        found = [outcomes[keys[row.prompt, response]] for response in row.responses.values()]
        scores = [one for one in found if isinstance(one, dict)]
        reasons = [one for one in found if isinstance(one, str)]
        if reasons:
            bad.append(BadRow(row.number, row.ids, VideoDecodeError(reasons[0])))
        else:
            results.append(judge_row(row, scores, scorer, trade_off))
    write_results(results, sorted(bad, key=lambda row: row.number), len(requests), arguments)


def judge_row(
    row: Row, scores: list[dict[str, float]], scorer: "Scorer", trade_off: "TradeOff | None"
) -> dict[str, Any]:
    from safe_rlhf_video.scoring.decisions import PairScore, Ranking, judge_pair, judge_ranking

    responses = [
        response.text if isinstance(response, TextResponse) else str(response) for response in row.responses.values()
    ]
    result: dict[str, Any] = {**row.ids, "prompt": row.prompt}
    calibration = scorer.calibration
    moderations = [
        scorer.judge_harms(one, isinstance(response, TextResponse))
        for one, response in zip(scores, row.responses.values(), strict=True)
        if scorer.can_moderate
    ]
    harms = [{"flags": list(one.flags), "probabilities": dict(one.probabilities)} for one in moderations]
    has_harms = any(one.probabilities for one in moderations)
    if row.kind == "clip":
        is_safe = {"is_safe": scores[0]["cost"] <= 0.0} if "cost" in scores[0] else {}
        return {**result, "video": responses[0], **scores[0], **is_safe, **({"harms": harms[0]} if has_harms else {})}
    assert trade_off is not None
    judged: PairScore | Ranking
    if row.kind == "pair":
        result |= zip(row.responses, responses, strict=True)
        pairs = {head: (score, scores[1][head]) for head, score in scores[0].items()}
        judged = judge_pair(pairs, trade_off, calibration.heads)
    else:
        result["videos"] = responses
        table = {head: [one[head] for one in scores] for head in scores[0]}
        judged = judge_ranking(table, trade_off, calibration.heads)
    fields = judged.to_dict()
    del fields["model"]  # the same in every row
    return {**result, **fields, **({"harms": harms} if has_harms else {})}


def write_results(
    results: list[dict[str, Any]], bad: list[BadRow], num_clips: int, arguments: argparse.Namespace
) -> None:
    out: Path = arguments.out
    side_file = out.with_name(f"{out.name}.bad.jsonl")
    lines = [json.dumps({"row": row.number, **row.ids, "reason": str(row.error)}) + "\n" for row in bad]
    try:
        # First: where the output is, what it lacks has been told.
        if bad:
            write_whole(side_file, "".join(lines))
        else:
            side_file.unlink(missing_ok=True)
        if results:
            write_whole(out, as_parquet(results) if out.suffix == ".parquet" else as_lines(results))
    except OSError as error:
        raise ConfigError(
            f"{out}: cannot be written ({error.strerror}), the scores are kept; make room and run the same again"
        ) from error
    if not results:
        raise SampleError(f"{arguments.input}: all {len(bad)} rows are bad; {side_file} tells why")
    message = f"{out}: {len(results)} clips scored"
    if "order" in results[0]:
        message = f"{out}: {len(results)} lists of {num_clips} clips put in order"
    elif "preferred" in results[0]:
        counts = Counter(row["preferred"] for row in results)
        preferred = ", ".join(f"{name} {counts[name]}" for name in ("v1", "v2", "tie"))
        message = f"{out}: {len(results)} pairs of {num_clips} clips scored; preferred: {preferred}"
    if not bad:
        print(message)
        return
    print(f"{message}; {len(bad)} of {len(results) + len(bad)} rows are bad and left out, {side_file} tells why")
    sys.stdout.flush()
    sys.exit(ROWS_LEFT_OUT)


def as_lines(results: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(row) + "\n" for row in results)


def as_parquet(results: list[dict[str, Any]]) -> bytes:
    import pyarrow
    import pyarrow.parquet

    # Parquet has no struct without fields: where no head has a value, the whole is null.
    rows = [{name: None if value == {} else value for name, value in row.items()} for row in results]
    buffer = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), buffer)
    return buffer.getvalue()
