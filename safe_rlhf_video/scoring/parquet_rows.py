"""Reads the rows of a Parquet file, and no more of them than memory can hold."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

from safe_rlhf_video import reading
from safe_rlhf_video.errors import SampleError

_BATCH_ROWS = 1 << 14
_ROW_BYTES = 200  # of a row without values, as a dictionary


def read_parquet(path: Path, columns: Collection[str]) -> list[dict[str, Any]]:
    """The rows with those of the columns that are there.

    Raises:
        SampleError: the file cannot be read, is damaged, or its rows take more than `reading.MAX_DATA_BYTES`.
    """
    import pyarrow
    import pyarrow.parquet

    rows: list[dict[str, Any]] = []
    left = reading.MAX_DATA_BYTES
    try:
        with reading.open_regular(path) as opened, pyarrow.parquet.ParquetFile(opened) as file:
            schema = file.schema
            leaves = [schema.column(place) for place in range(len(schema))]
            texts = [leaf.path for leaf in leaves if leaf.physical_type == "BYTE_ARRAY"]
        # As dictionaries, in which a text is once, however many rows have it: a small file may hold a long one a
        # million times.
        with reading.open_regular(path) as opened, pyarrow.parquet.ParquetFile(opened, read_dictionary=texts) as file:
            wanted = [name for name in columns if name in file.schema_arrow.names]
            for batch in file.iter_batches(_BATCH_ROWS, columns=wanted):
                left -= _ROW_BYTES * batch.num_rows + sum(map(_count_bytes, batch.columns))
                if left < 0:
                    raise reading.too_large()
                rows += batch.to_pylist()
    except (OSError, pyarrow.ArrowException, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise SampleError(f"{path}: cannot be read as Parquet ({reason}); write it again") from error
    return rows


def _count_bytes(column: Any) -> int:
    """About how many bytes the values of a column have."""
    import pyarrow.compute
    from pyarrow import types

    if types.is_dictionary(column.type):
        lengths = pyarrow.compute.take(pyarrow.compute.binary_length(column.dictionary), column.indices)
        return pyarrow.compute.sum(lengths).as_py() or 0
    if types.is_struct(column.type):
        return sum(map(_count_bytes, column.flatten()))
    if types.is_map(column.type):
        return _count_bytes(column.keys) + _count_bytes(column.items)
    if types.is_nested(column.type):
        return _count_bytes(column.flatten())
    num_bytes: int = column.nbytes
    return num_bytes
