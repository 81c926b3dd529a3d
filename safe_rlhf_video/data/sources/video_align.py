"""Converts CSV files of compared clips (VideoAlign, VideoGen-RewardBench) to SafeSora's pair records."""

from __future__ import annotations

import csv
import io
import os
import posixpath
import reprlib
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from safe_rlhf_video.contracts import show
from safe_rlhf_video.data.record_fields import described_in
from safe_rlhf_video.data.records import TIE
from safe_rlhf_video.data.sources.conversion import Conversion, digest
from safe_rlhf_video.data.video_folder import with_ending
from safe_rlhf_video.errors import SampleError
from safe_rlhf_video.reading import read_regular

# Column -> its name in SafeSora's format. Motion quality has no counterpart there and keeps its own name.
DIMENSION_OF: Mapping[str, str] = MappingProxyType(
    {"Overall": "helpfulness", "TA": "instruction_following", "VQ": "aesthetics", "MQ": "motion_quality"}
)
REQUIRED_COLUMNS = ("path_A", "path_B", "prompt")
PREFERENCES: Mapping[str, str | None] = MappingProxyType({"A": "video_0", "B": "video_1", "same": TIE, "": None})

# What `convert_csv` finds; the command prints it.
SAME_CLIP = "a clip compared with itself (left out)"

_MAX_CELL = 131_072  # csv's own limit, which other code in the process may have changed


def convert_csv(
    csv_file: Path, config_folder: Path, video_dir: Path | None = None
) -> tuple[list[dict[str, Any]], dict[str, list[str]]]:
    """Turns a CSV file of pairs into SafeSora's pair records.

    "A", "B" and "same" become video_0, video_1 and a tie; an empty cell is no label. `Overall` is `helpfulness`, `TA`
    is `instruction_following`, `VQ` is `aesthetics`, and `MQ` stays a sub-preference `motion_quality`. The same prompt
    is one prompt, the same path one video. Other columns go to `source_fields` of the pair.

    Args:
        csv_file: UTF-8 text with a header; needs `path_A`, `path_B`, `prompt` and one of the columns of labels.
        config_folder: where the records will be written. Their `video_path`s are relative to it, and end in ".mp4"
            where the file gives no ending, as their reader expects.
        video_dir: what the paths in the file are relative to; `config_folder` unless given.

    Returns:
        The records, and finding -> lines.

    Raises:
        SampleError: the file is missing, damaged or not CSV, a cell is wrong, or a clip lies outside `config_folder`;
            the message names file, line (counted from 1) and column.
    """
    lines = _read_cells(csv_file)
    first, header = next(lines)
    _check_header(header, csv_file.name)
    conversion = Conversion()
    for column, dimension in DIMENSION_OF.items():
        if column not in header:
            conversion.note(f"no column {column}: {dimension} has no label", f"{csv_file.name} line {first}")
    for number, values in lines:
        where = f"{csv_file.name} line {number}"
        cells = _name_cells(header, values, where)
        preferences = {name: PREFERENCES[cells[column]] for column, name in DIMENSION_OF.items() if column in cells}
        paths = [
            _relative_path(cells[column], config_folder, video_dir, f"{where} column {column}")
            for column in ("path_A", "path_B")
        ]
        if paths[0] == paths[1]:
            conversion.note(SAME_CLIP, where)
            continue
        videos = [
            {
                "video_id": digest(path),
                "video_path": path,
                "is_safe": None,
                "generated_from": cells.get(f"{side}_model") or None,
            }
            for path, side in zip(paths, "AB", strict=True)
        ]
        used = {*REQUIRED_COLUMNS, *DIMENSION_OF, "A_model", "B_model"}
        unused = {column: value for column, value in cells.items() if column not in used}
        conversion.add_pair(where, cells["prompt"], videos, preferences, source_fields=unused)
    return conversion.records, conversion.found


def _read_cells(csv_file: Path) -> Iterator[tuple[int, list[str]]]:
    """Yields the header and every row as (line number, cells), without empty lines."""
    text = _read_text(csv_file)
    if not text.strip():
        raise SampleError(f"{csv_file}: empty, expected a header and rows")
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    limit = csv.field_size_limit(_MAX_CELL)
    try:
        start = 1
        for values in reader:
            if values:
                yield start, values
            start = reader.line_num + 1
    except csv.Error as error:
        raise SampleError(
            f"{csv_file.name} line {start}: not valid CSV ({error}); check the quotes of the row that begins there"
        ) from error
    finally:
        csv.field_size_limit(limit)


def _read_text(csv_file: Path) -> str:
    try:
        content = read_regular(csv_file)
    except FileNotFoundError:
        raise SampleError(f"{csv_file}: no such file or folder; correct the path") from None
    except OSError as error:
        raise SampleError(f"{csv_file}: cannot be read ({error.strerror}); check the file and its rights") from error
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise SampleError(f"{csv_file.name} line {line}: not UTF-8 text; save the file as UTF-8") from error
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise SampleError(f"{csv_file.name} line {line}: holds a NUL character, is this a text file?")
    return text


@described_in("videoalign")
def _check_header(header: list[str], file_name: str) -> None:
    # Quoted, for a name may hold a line break or a space at its end.
    shown = reprlib.Repr()
    shown.maxlist = 40
    there = f"the header has {shown.repr(header)}"
    for name, count in Counter(header).items():
        if count > 1:
            raise SampleError(f"{file_name} column {show(name)}: is {count} times in the header; rename or remove one")
    for column in REQUIRED_COLUMNS:
        if column not in header:
            raise SampleError(f"{file_name} column {column}: missing; {there}")
    if not any(column in header for column in DIMENSION_OF):
        raise SampleError(f"{file_name}: no column of labels, expected one of {', '.join(DIMENSION_OF)}; {there}")


@described_in("videoalign")
def _name_cells(header: list[str], values: list[str], where: str) -> dict[str, str]:
    """The checked cells of a row by their columns."""
    if len(values) != len(header):
        raise SampleError(
            f"{where}: {len(values)} cells, expected {len(header)} as in the header; a text with commas or line "
            "breaks needs quotes"
        )
    cells = dict(zip(header, values, strict=True))
    for column in REQUIRED_COLUMNS:
        if not cells[column].strip():
            raise SampleError(f"{where} column {column}: empty, expected a text")
    for column in DIMENSION_OF:
        if (value := cells.get(column, "")) not in PREFERENCES:
            raise SampleError(f"{where} column {column}: {show(value)} is not a label, expected A, B, same or nothing")
    return cells


def _relative_path(written: str, config_folder: Path, video_dir: Path | None, where: str) -> str:
    """The path from the config to a clip; one clip has one path, however the file writes it."""
    root = config_folder if video_dir is None else video_dir
    path = os.path.relpath(os.path.join(os.path.abspath(root), written), os.path.abspath(config_folder))
    path = with_ending(str(config_folder), posixpath.normpath(path.replace(os.sep, "/")))
    # The rule of the records' reader, which holds for symbolic links too.
    real_folder = os.path.realpath(config_folder)
    real = os.path.realpath(os.path.join(real_folder, path))
    if real == real_folder or os.path.commonpath((real, real_folder)) != real_folder:
        raise SampleError(
            f"{where}: {written!r} leads out of the config's folder {config_folder}; write the config to a folder that "
            "holds the clips, or give their folder with --video_dir"
        )
    return path
