"""What an offline W&B run has in its .wandb file; wandb ships no reader for it."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from wandb.proto import wandb_internal_pb2


def read_records(run: Path) -> list[Any]:
    """The protobuf records of a run folder's only W&B run, over all its starts in order."""
    files = sorted((run / "wandb").glob("offline-run-*/*.wandb"))
    assert len({file.name for file in files}) == 1
    return [wandb_internal_pb2.Record.FromString(content) for file in files for content in _blocks(file)]


def read_history(run: Path) -> list[dict[str, Any]]:
    """What was logged, a row a step: figures as they are, media as W&B's description of them."""
    rows = []
    for record in read_records(run):
        if record.WhichOneof("record_type") == "history":
            row: dict[str, Any] = {}
            for item in record.history.item:
                name, *inner = item.nested_key or [item.key]
                value = json.loads(item.value_json)
                if inner:
                    row.setdefault(name, {})["/".join(inner)] = value
                else:
                    row[name] = value
            assert row["_step"] == row["step"]
            rows.append({name: value for name, value in row.items() if not name.startswith("_")})
    return rows


def figures(row: dict[str, Any]) -> dict[str, Any]:
    """A row without its media."""
    return {name: value for name, value in row.items() if not isinstance(value, dict)}


def _blocks(path: Path) -> Iterator[bytes]:
    """The records of a .wandb file: LevelDB's log format (blocks of 32 KiB) behind 7 bytes."""
    content, position, record = path.read_bytes(), 7, b""
    while position + 7 <= len(content):
        if (left := 32768 - position % 32768) < 7:
            position += left
            continue
        _, length, kind = struct.unpack_from("<IHB", content, position)
        record += content[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # a whole record, or the last piece of one
            yield record
            record = b""
