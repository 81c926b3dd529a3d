"""Reads the rows that scripts/score.py scores: clips, pairs of clips, or lists of candidates."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field
from typing_extensions import TypedDict

from safe_rlhf_video.contracts import OPEN, check_fields
from safe_rlhf_video.data.config_files import decode_json, decode_text
from safe_rlhf_video.data.datasets import PairDataset, PromptDataset, load_any
from safe_rlhf_video.data.record_fields import FilePath, NonEmptyText, described_in, fail, is_unicode
from safe_rlhf_video.errors import SafeRLHFVideoError, SampleError
from safe_rlhf_video.files import require_path
from safe_rlhf_video.reading import read_regular
from safe_rlhf_video.responses import TextResponse
from safe_rlhf_video.scoring.parquet_rows import read_parquet
from safe_rlhf_video.scoring.score_many import request_videos

Kind = Literal["clip", "pair", "list"]


class ClipFields(TypedDict):
    """The fields of a row with one clip."""

    __pydantic_config__ = OPEN  # type: ignore[misc]

    prompt: NonEmptyText
    video: FilePath


class PairFields(TypedDict):
    """The fields of a row with two clips."""

    __pydantic_config__ = OPEN  # type: ignore[misc]

    prompt: NonEmptyText
    v1: FilePath
    v2: FilePath


class ListFields(TypedDict):
    """The fields of a row with candidates."""

    __pydantic_config__ = OPEN  # type: ignore[misc]

    prompt: NonEmptyText
    videos: Annotated[list[FilePath], Field(min_length=1)]


@dataclass(frozen=True)
class RowForm:
    """How rows of one kind are written: the field of the id, what a message calls the row, and its fields."""

    id_field: str
    name: str
    fields: type


FORMS: Mapping[Kind, RowForm] = {
    "clip": RowForm("video_id", "a clip", ClipFields),
    "list": RowForm("prompt_id", "a list of videos", ListFields),
    "pair": RowForm("pair_id", "a pair", PairFields),
}
COLUMNS = ("prompt", "v1", "v2", "video", "videos", *(form.id_field for form in FORMS.values()))


@dataclass(frozen=True)
class InputRow:
    """One response to judge, two to choose between, or several to put in order.

    Attributes:
        number: in the file, from 0.
        ids: copied to the output.
        responses: by field: `video`; `v1` and `v2`; `videos[0]` and so on.
        has_id: whether the row has an id of its own; else its number serves.
    """

    number: int
    ids: Mapping[str, str]
    prompt: str
    responses: Mapping[str, Path | TextResponse]
    kind: Kind
    has_id: bool = True


@dataclass(frozen=True)
class BadRow:
    """A row that cannot be judged, and why."""

    number: int
    ids: Mapping[str, str]
    error: SafeRLHFVideoError


def read_rows(path: Path, video_dir: str | None = None) -> tuple[list[InputRow], list[BadRow]]:
    """Reads the rows of a file of JSON lines, a Parquet file or a SafeSora config, good and bad ones apart.

    Args:
        video_dir: what the paths of rows are relative to, in place of the file's folder; of a SafeSora config, where
            its clips are.

    Raises:
        SampleError: the file cannot be read, or a record of a SafeSora config is wrong.
    """
    require_path(path, SampleError)
    if video_dir is not None:
        require_path(video_dir, SampleError, "correct the folder of the clips")
    if path.name.endswith((".json", ".json.gz")):
        return _read_config(path, video_dir), []
    rows: list[InputRow] = []
    bad: list[BadRow] = []
    folder = path.parent if video_dir is None else Path(video_dir)
    for number, record in enumerate(read_parquet(path, COLUMNS)) if path.suffix == ".parquet" else _read_lines(path):
        where = f"{path} row {number}"
        ids: dict[str, str] = {}
        try:
            if isinstance(record, SampleError):
                raise record
            row = _parse_row(record, number, folder, where, ids)
            if rows and row.kind != rows[0].kind:
                names = [FORMS[one.kind].name for one in (row, rows[0])]
                raise SampleError(f"{where}: {names[0]}, but row {rows[0].number} is {names[1]}; make it two files")
            rows.append(row)
        except SampleError as error:
            bad.append(BadRow(number, ids, error))
    _check_numbers(path, rows)
    return rows, bad


@described_in("rows-to-score")
def _check_numbers(path: Path, rows: Sequence[InputRow]) -> None:
    """The number of a row without an id must not be another row's id."""
    number_of = {row.ids[FORMS[row.kind].id_field]: row.number for row in rows if row.has_id}
    for row in rows:
        if not row.has_id and (other := number_of.get(str(row.number))) is not None:
            raise SampleError(
                f"{path} row {row.number}: has no {FORMS[row.kind].id_field}, and its number is that of row {other}; "
                "give each row one"
            )


def _read_config(path: Path, video_dir: str | None) -> list[InputRow]:
    dataset = load_any(path, video_dir=video_dir)
    if isinstance(dataset, PromptDataset):
        raise SampleError(f"{path}: holds prompts alone; give pairs or videos")
    responses: dict[str, Any] = {request.key: request.response for request in request_videos(dataset, dataset.videos)}
    if isinstance(dataset, PairDataset):
        return [
            InputRow(number, {"pair_id": pair.pair_id}, pair.prompt_text,
                     {"v1": responses[pair.video_0.name], "v2": responses[pair.video_1.name]}, "pair")
            for number, pair in enumerate(dataset.pairs)
        ]  # fmt: skip
    return [
        InputRow(number, {"prompt_id": video.prompt_id, "video_id": video.video_id}, video.prompt_text,
                 {"video": responses[video.name]}, "clip")
        for number, video in enumerate(dataset.videos)
    ]  # fmt: skip


def _read_lines(path: Path) -> Iterator[tuple[int, Any]]:
    """Yields row numbers, which count blank lines too, and rows; a SampleError for a line that is no JSON."""
    try:
        content = read_regular(path)
    except OSError as error:
        raise SampleError(f"{path}: cannot be read ({error}); give JSON lines, Parquet or a SafeSora config") from error
    # Not splitlines(): a prompt may hold other line ends, such as U+2028.
    lines = decode_text(content, str(path)).split("\n")
    for number, line in enumerate(lines):
        if not line.strip():
            continue
        try:
            yield number, decode_json(line, f"{path} row {number}")
        except SampleError as error:
            yield number, error


@described_in("rows-to-score")
def _parse_row(record: Any, number: int, folder: Path, where: str, ids: dict[str, str]) -> InputRow:
    """Checks a row; fills `ids` first, so that a bad row can be named by its id."""
    if not isinstance(record, dict):
        fail(where, "prompt", "an object with a prompt", record)
    record = {name: value for name, value in record.items() if value is not None}
    given = [kind for kind, form in FORMS.items() if (form.fields.__annotations__.keys() - {"prompt"}) & record.keys()]
    kind = given[-1] if given else "pair"
    id_field = FORMS[kind].id_field
    name = record.get(id_field, number)
    if isinstance(name, bool) or not isinstance(name, str | int):
        fail(where, id_field, "a string or a whole number", name)
    if not is_unicode(str(name)):
        fail(where, id_field, "text without lone surrogates", name)
    ids[id_field] = str(name)
    if id_field not in record and (others := [form.id_field for form in FORMS.values() if form.id_field in record]):
        raise SampleError(
            f"{where} field {others[0]}: is not the id of {FORMS[kind].name}; give it a {id_field}, or leave this out"
        )
    if len(given) > 1:
        raise SampleError(f"{where}: has {' and '.join(FORMS[kind].name for kind in given)}; give one of them")
    checked = check_fields(FORMS[kind].fields, record, where, SampleError)
    prompt = checked.pop("prompt")
    if not prompt.strip():
        fail(where, "prompt", "a text", prompt)
    if kind == "list":
        checked = {f"videos[{place}]": path for place, path in enumerate(checked["videos"])}
    responses = {field: folder / path for field, path in checked.items()}
    return InputRow(number, ids, prompt, responses, kind, has_id=id_field in record)
