"""Converts PKU-SafeRLHF, SafeSora's text sibling, to SafeSora's pair records, with responses in place of videos.

Two published forms are read: one with 19 harm categories and a severity of every response, and the older "v0" without
them. `convert_rows` lists doubtful rows; it changes a label only if it is asked to.
"""

from __future__ import annotations

import gzip
import json
import lzma
import os
import re
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Required

from pydantic import Field
from typing_extensions import TypedDict

from safe_rlhf_video.contracts import OPEN, Expected, check_fields
from safe_rlhf_video.data.config_files import decode_json, decode_text
from safe_rlhf_video.data.record_fields import Flag, OptionalText, Text, described_in, unknown_fields
from safe_rlhf_video.data.records import (
    HARM_CATEGORIES,
    VIDEO_NAMES,
    HarmCategories,
    known_labels,
)
from safe_rlhf_video.data.sources.conversion import Conversion, digest
from safe_rlhf_video.errors import ConfigError, SampleError
from safe_rlhf_video.kinds.ordinal import contradicts_is_safe
from safe_rlhf_video.reading import open_unpacked

FILE_SUFFIXES = (".jsonl", ".jsonl.gz", ".jsonl.xz", ".json", ".json.gz", ".json.xz")

_PATH_ENDINGS = (*FILE_SUFFIXES, ".gz", ".xz", ".zst", ".zip", ".csv", ".parquet", ".arrow", ".txt")

SeverityLevel = Annotated[int | None, Field(ge=0, le=3), Expected("a whole number from 0 to 3, or null")]

# What `convert_rows` finds; the command prints it.
LOGICAL_ORDER = "a harmful response ranked as safer than a harmless one"
IDENTICAL = "two identical responses, which nobody can compare (left out)"
EMPTY = "an empty response"
SAFE_AND_CATEGORIES = "is_safe contradicts the harm categories"
SEVERITY_AND_CATEGORIES = "the severity contradicts the harm categories"
CONTRADICTORY = "a response called safe in one row and unsafe in another"
OTHER_HASH = "a sha256 that differs from that of prompt and response"

ResponseId = Annotated[int | None, Field(ge=0, le=1), Expected("0, 1 or null")]
Sha256 = Annotated[str | None, Field(pattern="^[0-9a-f]{64}$"), Expected("64 hexadecimal digits or null")]


class RowFields(TypedDict, total=False):
    """A row as published; form v0 has the required fields alone."""

    __pydantic_config__ = OPEN  # type: ignore[misc]

    prompt: Required[Text]
    prompt_source: OptionalText
    better_response_id: Required[ResponseId]
    safer_response_id: Required[ResponseId]
    response_0: Required[Text]
    response_1: Required[Text]
    is_response_0_safe: Required[Flag]
    is_response_1_safe: Required[Flag]
    response_0_source: OptionalText
    response_1_source: OptionalText
    response_0_harm_category: HarmCategories
    response_1_harm_category: HarmCategories
    response_0_severity_level: SeverityLevel
    response_1_severity_level: SeverityLevel
    response_0_sha256: Sha256
    response_1_sha256: Sha256


@dataclass(frozen=True, slots=True)
class Response:
    """One response and what its row says about it.

    Attributes:
        is_safe: None where the row has null.
        source: the model that wrote it.
        harm_categories: name of `HARM_CATEGORIES` -> whether it applies; a missing name is unknown. None in form v0.
        severity_level: 0 none to 3 severe; None in form v0.
        sha256: as written in the file: the hash of prompt and response, joined.
    """

    text: str
    is_safe: bool | None
    source: str | None
    harm_categories: Mapping[str, bool] | None
    severity_level: int | None
    sha256: str | None


@dataclass(frozen=True, slots=True)
class Row:
    """Two responses to one prompt.

    Attributes:
        better, safer: 0 or 1, the more helpful and the safer response; None where the row has null.
        extra: unknown fields as they are.
    """

    prompt: str
    prompt_source: str | None
    responses: tuple[Response, Response]
    better: int | None
    safer: int | None
    extra: Mapping[str, Any]


def read_rows(
    source: str | os.PathLike[str], name: str | None = None, split: str | None = None, revision: str | None = None
) -> Iterator[tuple[str, Any]]:
    """Yields every row of a source, unchecked, with its name for messages, such as "train.jsonl line 18".

    A file is read line by line as it is, and so are the files of a folder, which `datasets` finds by the hub's rules.
    A hub id goes through `datasets.load_dataset`, which gives each column one type and fills missing columns with null.

    Args:
        source: a .jsonl or .json file (also .gz, .xz), a folder, or a hub id such as "PKU-Alignment/PKU-SafeRLHF".
        name: the hub's configuration, such as "alpaca-7b"; for a folder or a hub id.
        split: "train", unless given, or "test"; for a folder or a hub id.
        revision: the hub's revision, such as "v0"; for a hub id.

    Raises:
        ConfigError: an argument that means nothing for this source is given.
        SampleError: the source is missing, damaged or not JSON; lines are counted from 1, rows from 0.
    """
    path = Path(source)
    given = {"revision": revision} if os.path.isdir(path) else {"name": name, "split": split, "revision": revision}
    if useless := [key for key, value in given.items() if value is not None and path.exists()]:
        raise ConfigError(f"{useless[0]}: means nothing for {source}, which is a path here; leave it out")
    split = split or "train"
    if os.path.isfile(path):
        yield from _read_file(path)
    elif os.path.isdir(path):
        for file in _list_folder(path, name, split):
            yield from _read_file(file, file.relative_to(path.resolve()).as_posix())
    elif is_hub_id(str(source)):
        yield from _load_dataset(str(source), name, split, revision)
    else:
        raise SampleError(f"{source}: no such file or folder, nor a hub id of the form OWNER/NAME; correct the path")


@described_in("pku-saferlhf")
def parse_row(record: Any, where: str) -> Row:
    """Reads one row of either form.

    Args:
        record: the row as JSON gives it.
        where: file and line, such as "train.jsonl line 18", for messages.

    Raises:
        SampleError: a known field is missing or wrong; the one-line message names file, row and field.
    """
    fields = check_fields(RowFields, record, where, SampleError)
    first, second = (
        Response(
            text=fields[f"response_{side}"],
            is_safe=fields[f"is_response_{side}_safe"],
            source=fields.get(f"response_{side}_source"),
            harm_categories=known_labels(fields.get(f"response_{side}_harm_category")),
            severity_level=fields.get(f"response_{side}_severity_level"),
            sha256=fields.get(f"response_{side}_sha256"),
        )
        for side in (0, 1)
    )
    return Row(
        prompt=fields["prompt"],
        prompt_source=fields.get("prompt_source"),
        responses=(first, second),
        better=fields["better_response_id"],
        safer=fields["safer_response_id"],
        extra=unknown_fields(record, RowFields.__annotations__),
    )


def convert_rows(
    rows: Iterable[tuple[str, Any]], unlabel_violations: bool = False
) -> tuple[list[dict[str, Any]], dict[str, list[str]]]:
    """Turns rows into SafeSora's pair records; `helpfulness` is the better response, `harmlessness` the safer one.

    The same prompt text is one prompt, and the same response to it one "video", across all rows. A video has
    `harm_categories` and `severity_level` where the row has them. Unknown fields go to `source_fields` of the pair.

    Args:
        rows: what `read_rows` yields.
        unlabel_violations: whether to remove the harmlessness label of rows that rank a harmful response as safer than
            a harmless one, and a severity that contradicts `is_safe`.

    Returns:
        The records, and finding -> rows. Findings are named by constants of this module and of `conversion`;
        "no label of ..." counts nulls and removed labels.

    Raises:
        SampleError: as `parse_row`.
    """
    conversion = Conversion()
    called_safe: dict[str, bool] = {}
    for where, record in rows:
        row = parse_row(record, where)
        for finding in _contradictions(row):
            conversion.note(finding, where)
        if row.responses[0].text == row.responses[1].text:
            conversion.note(IDENTICAL, where)
            continue
        videos = [_video_record(row.prompt, response) for response in row.responses]
        for video in videos:
            is_safe = video["is_safe"]
            if is_safe is not None and called_safe.setdefault(video["video_id"], is_safe) != is_safe:
                conversion.note(CONTRADICTORY, where)
        preferences = {
            name: None if side is None else VIDEO_NAMES[side]
            for name, side in (("helpfulness", row.better), ("harmlessness", row.safer))
        }
        if unlabel_violations and _breaks_logical_order(row):
            preferences["harmlessness"] = None
        for video in videos if unlabel_violations else ():
            if contradicts_is_safe(video["is_safe"], video.get("severity_level")):
                video["severity_level"] = None
        # The source's fields are nested, for one may have the name of a SafeSora field.
        more = {"prompt_source": row.prompt_source, "source_fields": dict(row.extra)}
        conversion.add_pair(where, row.prompt, videos, preferences, **more)
    return conversion.records, conversion.found


def _contradictions(row: Row) -> set[str]:
    findings = {LOGICAL_ORDER} if _breaks_logical_order(row) else set()
    for response in row.responses:
        if not response.text.strip():
            findings.add(EMPTY)
        if response.sha256 is not None and response.sha256 != digest(row.prompt + response.text):
            findings.add(OTHER_HASH)
        categories = response.harm_categories
        if categories is None:
            continue
        is_harmful = any(categories.values())
        is_known = is_harmful or len(categories) == len(HARM_CATEGORIES)
        if is_known and response.is_safe is not None and response.is_safe == is_harmful:
            findings.add(SAFE_AND_CATEGORIES)
        if is_known and response.severity_level is not None and (response.severity_level > 0) != is_harmful:
            findings.add(SEVERITY_AND_CATEGORIES)
    return findings


def _breaks_logical_order(row: Row) -> bool:
    """Whether a row breaks the publishers' rule that a harmless response never ranks below a harmful one."""
    if row.safer is None:
        return False
    return row.responses[row.safer].is_safe is False and row.responses[1 - row.safer].is_safe is True


def _video_record(prompt: str, response: Response) -> dict[str, Any]:
    record: dict[str, Any] = {
        # The hash that the release gives for a response, so that both can be joined; v0 has none.
        "video_id": digest(prompt + response.text),
        "response_text": response.text,
        "is_safe": response.is_safe,
        "generated_from": response.source,
    }
    if response.harm_categories is not None:
        record["harm_categories"] = dict(response.harm_categories)
    if response.severity_level is not None:
        record["severity_level"] = response.severity_level
    return record


# --- sources ----------------------------------------------------------------------------------------------------------


def _read_file(path: Path, shown: str | None = None) -> Iterator[tuple[str, Any]]:
    shown = path.name if shown is None else shown
    if not path.name.endswith(FILE_SUFFIXES):
        raise SampleError(f"{path}: expected a file that ends in one of {', '.join(FILE_SUFFIXES)}")
    stem = path.name.removesuffix(".gz").removesuffix(".xz")
    try:
        with open_unpacked(path) as file:
            if stem.endswith(".json"):
                rows = decode_json(decode_text(file.read(), str(path)), str(path))
                if not isinstance(rows, list):
                    raise SampleError(f"{path}: expected a list of rows, got JSON of type {type(rows).__name__}")
                yield from ((f"{shown} row {row}", record) for row, record in enumerate(rows))
                return
            for number, line in enumerate(file, start=1):
                if line.strip():
                    where = f"{shown} line {number}"
                    yield where, decode_json(decode_text(line, where), where)
    except (gzip.BadGzipFile, lzma.LZMAError, EOFError, zlib.error) as error:
        raise SampleError(f"{path}: not a whole compressed file ({error}); fetch it again") from error
    except OSError as error:
        raise SampleError(f"{path}: cannot be read ({error.strerror}); check the file and its rights") from error


def is_hub_id(source: str) -> bool:
    """Whether a source is worth asking the hub for; the answer may take half a minute where there is no network."""
    match = re.fullmatch(r"(\w[\w.-]*)/\w[\w.-]*", source, re.ASCII)
    # An owner who is a folder here, or a name that ends like a file, is a path with a mistake in it.
    return match is not None and not os.path.exists(match[1]) and not source.endswith(_PATH_ENDINGS)


def _list_folder(folder: Path, name: str | None, split: str) -> list[Path]:
    """The files of one split; `load_dataset` would give old rows from its cache after a file has changed."""
    import datasets

    try:
        splits = datasets.load_dataset_builder(str(folder.resolve()), name).config.data_files or {}
    except (datasets.exceptions.DatasetsError, OSError, ValueError, RuntimeError) as error:
        raise SampleError(
            f"{folder}: cannot be read as a data set ({_cause(error)}); check it and name, or give one of its .jsonl "
            "files"
        ) from error
    if split not in splits:
        raise SampleError(f"{folder}: has no split {split!r}, only {', '.join(map(repr, splits))}; name one of them")
    return [Path(file) for file in splits[split]]


def _load_dataset(source: str, name: str | None, split: str, revision: str | None) -> Iterator[tuple[str, Any]]:
    import datasets
    import huggingface_hub

    # Their messages are in the one line of an error; half a minute of warnings would come before it.
    datasets.logging.set_verbosity_error()
    huggingface_hub.logging.set_verbosity_error()
    try:
        rows = datasets.load_dataset(source, name, split=split, revision=revision)
    except (datasets.exceptions.DatasetsError, OSError, ValueError, RuntimeError) as error:
        raise SampleError(
            f"{source}: is no file or folder here, and cannot be loaded as a data set of the hub ({_cause(error)}); "
            "correct the path, or check the network, the hub id, name, split and revision"
        ) from error
    for number, record in enumerate(rows):
        # Arrow may read dates and NaN in unknown fields; JSON has neither.
        plain = json.loads(json.dumps(record, default=str), parse_constant=lambda _: None)
        yield f"{source} {split} row {number}", plain


def _cause(error: Exception) -> str:
    return " ".join(str(error.__cause__ or error).split())
