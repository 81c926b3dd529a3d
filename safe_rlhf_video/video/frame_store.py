"""Reads the frame store: a folder of sampled, resized frames, decoded once, from which runs read clips.

    store.json         format_version, sampling, codec
    index.jsonl        a row per clip, only ever appended: the place, shape and times of its frames, or its error; of
                       several rows with one name the last one counts
    frames-00000.bin   frames, one clip after the other; clips of equal files share their frames
    quarantine.jsonl   the rows with an error, for people; no program reads it

Every line of store.json and index.jsonl ends with a checksum of itself and of all lines before it, and a row has the
checksum of its frames. So a changed byte is found when the store is opened or, within frames, when the clip is read.
`store_builder.build_store` writes stores, and continues half-built ones.
"""

import io
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import xxhash

from safe_rlhf_video.errors import ConfigError, VideoDecodeError
from safe_rlhf_video.files import require_path, whole_lines
from safe_rlhf_video.reading import load_json, open_regular, read_regular
from safe_rlhf_video.video.codec import Codec, decode_frames
from safe_rlhf_video.video.sampling import Sampling, Video

# 2: frames are chosen by time, and mirrored as the container says.
FORMAT_VERSION = 2

HEADER_NAME, INDEX_NAME, QUARANTINE_NAME = "store.json", "index.jsonl", "quarantine.jsonl"

BUILD_COMMAND = "scripts/prepare_videos.py"

_SEAL = b',"checksum":"'
_SEALED_END = len(_SEAL) + 32 + len(b'"}\n')


@dataclass(frozen=True, slots=True)
class StoredClip:
    """A row of the index for a clip that could be read.

    Attributes:
        name: prompt_id/video_id.
        file_sha256, file_size: of the video file.
        file_mtime_ns: its time of change, which identifies it without reading it; None if it was temporary.
        shard, offset: the beginning of its frames.
        piece_bytes: lengths of its pieces (`codec.encode_frames`).
        shape: (T, H, W, 3).
        timestamps: T seconds, from the first frame of the clip.
        payload_checksum: XXH3-128 of all pieces, hexadecimal.
    """

    name: str
    file_sha256: str
    file_size: int | None
    file_mtime_ns: int | None
    shard: int
    offset: int
    piece_bytes: list[int]
    shape: list[int]
    timestamps: list[float]
    payload_checksum: str

    @property
    def end(self) -> int:
        """The offset after the last byte."""
        return self.offset + sum(self.piece_bytes)


@dataclass(frozen=True, slots=True)
class QuarantinedClip:
    """A row of the index for a clip that could not be read; size and time are None without a file."""

    name: str
    file_size: int | None
    file_mtime_ns: int | None
    error: str


class FrameStore:
    """A store to read from. Any number of processes may read it, forked ones too, and while clips are added.

    Clips that are added after opening are not seen.

    Attributes:
        folder: of the store.
        sampling: which frames of a clip it holds, and their size.
        codec: how frames are stored.
        quarantined: name -> reason of each clip that could not be read.

    Raises:
        VideoDecodeError: the store is damaged or missing; the message names the file.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self._shards: dict[int, io.FileIO] = {}
        self.folder = Path(folder)
        self._absolute_folder = self.folder.absolute()  # shards are opened later, maybe from another current folder
        self.sampling, self.codec, checksum = read_header(self.folder)
        index = read_index(self.folder, checksum)
        if index.has_tail:
            raise VideoDecodeError(
                f"{self.folder / INDEX_NAME}: its last row is cut short, so a build was interrupted; run "
                f"{BUILD_COMMAND} again to finish it"
            )
        self._clips = {name: row for name, row in index.rows.items() if isinstance(row, StoredClip)}
        self.quarantined: Mapping[str, str] = MappingProxyType(
            {name: row.error for name, row in index.rows.items() if isinstance(row, QuarantinedClip)}
        )
        check_shards(self.folder, index.shard_ends)

    def __del__(self) -> None:
        for file in self._shards.values():
            file.close()

    @classmethod
    def open(cls, folder: str | os.PathLike[str], sampling: Sampling) -> "FrameStore":
        """Opens a store for a run with this sampling.

        Raises:
            VideoDecodeError: as above.
            ConfigError: the store holds another sampling; the message shows the difference.
        """
        store = cls(folder)
        check_sampling(store.folder, store.sampling, sampling)
        return store

    @property
    def codec_name(self) -> str:
        """The codec in a word: "raw", "jpeg-95"."""
        return "-".join(str(value) for value in self.codec.to_dict().values())

    def __len__(self) -> int:
        return len(self._clips)

    def __contains__(self, name: object) -> bool:
        return name in self._clips

    def read(self, name: str) -> Video:
        """Reads the clip that `read_video` gave when the store was built; compares its checksum every time.

        Args:
            name: prompt_id/video_id.

        Returns:
            The clip; raw frames are read-only.

        Raises:
            VideoDecodeError: the clip is missing, in quarantine, or its frames are damaged.
        """
        row = self._clips.get(name)
        if row is None:
            if name in self.quarantined:
                raise VideoDecodeError(f"{name}: is in the quarantine of {self.folder} ({self.quarantined[name]})")
            raise VideoDecodeError(f"{name}: is not in the frame store {self.folder}; run {BUILD_COMMAND} to add it")
        payload = self._read_payload(row)
        if xxhash.xxh3_128_hexdigest(payload) != row.payload_checksum:
            raise VideoDecodeError(
                f"{shard_file(self.folder, row.shard)}: the frames of {name} have changed; run {BUILD_COMMAND} again "
                "with --verify to mend them"
            )
        frames = decode_frames(payload, row.shape, row.piece_bytes, self.codec)
        return Video(frames, np.array(row.timestamps, dtype=np.float64))

    def file_of(self, name: str) -> tuple[int | None, str]:
        """Size in bytes and SHA-256 of the file whose frames the store holds as this clip's; the clip must be there."""
        row = self._clips[name]
        return row.file_size, row.file_sha256

    def verify(self) -> None:
        """Reads every clip; raises VideoDecodeError for the first damaged one."""
        for name in self._clips:
            self.read(name)

    def check_clips(self, files: Mapping[str, Path]) -> None:
        """Raises VideoDecodeError unless every clip is stored or in quarantine, and its file has the recorded size.

        Args:
            files: name -> the clip's file, which may be missing.
        """
        missing = [name for name in files if name not in self._clips and name not in self.quarantined]
        if missing:
            raise VideoDecodeError(
                f"{self.folder}: lacks the clip {missing[0]}, {len(missing)} of {len(files)} are missing; run "
                f"{BUILD_COMMAND} again with all data sets"
            )
        changed = [
            name
            for name, path in files.items()
            if name in self._clips and os.path.isfile(path) and os.path.getsize(path) != self._clips[name].file_size
        ]
        if changed:
            raise VideoDecodeError(
                f"{files[changed[0]]}: is not the file whose frames {self.folder} holds as {changed[0]} (another "
                f"size), and so for {len(changed)} of {len(files)} clips; run {BUILD_COMMAND} again, or give each data "
                "set a store of its own"
            )

    def _read_payload(self, row: StoredClip) -> memoryview:
        # Not mapped into memory: if a mapped file is cut off, or its disk fails, reading it ends the process (SIGBUS).
        path = shard_file(self._absolute_folder, row.shard)
        try:
            # Opened when needed: a rank of a large run may never use most shards.
            if row.shard not in self._shards:
                self._shards[row.shard] = path.open("rb", buffering=0)
            # With an offset, because forked processes share the file's position.
            return memoryview(os.pread(self._shards[row.shard].fileno(), row.end - row.offset, row.offset))
        except OSError as error:
            raise _damage(path, f"cannot be read ({error.strerror})") from error


@dataclass(frozen=True)
class Index:
    """The content of index.jsonl.

    Attributes:
        rows: the last row of each name, in the order in which names appeared.
        by_file: SHA-256 of a video file -> the last row with its frames.
        shard_ends: shard -> bytes that rows cover.
        num_bytes: length of all whole lines; has_tail: whether bytes follow them.
        checksum: of the last line.
    """

    rows: dict[str, StoredClip | QuarantinedClip]
    by_file: dict[str, StoredClip]
    shard_ends: dict[int, int]
    num_bytes: int
    has_tail: bool
    checksum: str


def read_header(folder: Path) -> tuple[Sampling, Codec, str]:
    """Reads sampling, codec and checksum of store.json; raises VideoDecodeError if it is missing or damaged."""
    path = folder / HEADER_NAME
    require_path(folder, VideoDecodeError, f"make a frame store with {BUILD_COMMAND}")
    try:
        line = read_regular(path)
    except OSError as error:
        raise VideoDecodeError(
            f"{path}: cannot be read ({error.strerror}), so {folder} is no frame store; make one with {BUILD_COMMAND}"
        ) from error
    header = unseal(line, "")
    if header is None:
        raise _damage(path, "has changed since it was written")
    if header["format_version"] != FORMAT_VERSION:
        raise VideoDecodeError(
            f"{path}: format_version is {header['format_version']}, this release reads {FORMAT_VERSION}; make the "
            f"store anew with {BUILD_COMMAND}"
        )
    return Sampling.from_dict(header["sampling"]), Codec.from_dict(header["codec"]), header["checksum"]


def read_index(folder: Path, checksum: str) -> Index:
    """Reads index.jsonl; `has_tail` reports an unfinished last line, which a kill leaves.

    Args:
        folder: of the store.
        checksum: of store.json, which the first line continues.

    Raises:
        VideoDecodeError: it is missing, or a line has changed since it was written.
    """
    path = folder / INDEX_NAME
    try:
        with open_regular(path) as file:
            content = file.read()
    except OSError as error:
        raise _damage(path, f"cannot be read ({error.strerror})") from error
    rows: dict[str, StoredClip | QuarantinedClip] = {}
    by_file: dict[str, StoredClip] = {}
    shard_ends: dict[int, int] = {}
    start = num_lines = 0
    whole = whole_lines(content)
    while (end := whole.find(b"\n", start) + 1) > 0:
        fields = unseal(content[start:end], checksum)
        if fields is None:
            raise _damage(path, f"line {num_lines + 1} or the one before has changed since it was written")
        num_lines += 1
        checksum = fields.pop("checksum")
        name = fields["name"]
        if "error" in fields:
            rows[name] = QuarantinedClip(**fields)
        else:
            clip = rows[name] = StoredClip(**fields)
            by_file[clip.file_sha256] = clip
            shard_ends[clip.shard] = max(clip.end, shard_ends.get(clip.shard, 0))
        start = end
    tail = content[start:]
    # A kill never leaves a whole row that lacks only its line end.
    if tail and unseal(tail[:-1] + b"\n", checksum) is not None:
        raise _damage(path, "the end of its last line has changed since it was written")
    return Index(rows, by_file, shard_ends, start, bool(tail), checksum)


def read_rows(folder: str | os.PathLike[str]) -> dict[str, StoredClip | QuarantinedClip]:
    """The rows of a store that may be half-built or absent; raises VideoDecodeError if it is damaged."""
    folder = Path(folder)
    if not (folder / HEADER_NAME).exists():
        return {}
    *_, checksum = read_header(folder)
    return read_index(folder, checksum).rows


def check_shards(folder: Path, shard_ends: Mapping[int, int]) -> None:
    """Raises VideoDecodeError if frames that the index lists are gone."""
    for shard, end in shard_ends.items():
        path = shard_file(folder, shard)
        try:
            size = path.stat().st_size
        except OSError as error:
            raise _damage(path, f"cannot be read ({error.strerror})") from error
        if size < end:
            raise _damage(path, f"has {size} bytes of at least {end}")


def check_sampling(folder: Path, stored: Sampling, wanted: Sampling) -> None:
    """Raises ConfigError unless the store in `folder` has the wanted sampling."""
    there, here = stored.to_dict(), wanted.to_dict()
    if differences := [f"{key} {there[key]}, not {here[key]}" for key in here if there[key] != here[key]]:
        raise ConfigError(
            f"{folder / HEADER_NAME}: the frame store has sampling {'; '.join(differences)} as asked for; make another "
            f"store with {BUILD_COMMAND} or change the sampling"
        )


def shard_file(folder: Path, shard: int) -> Path:
    """The file with the frames of a shard."""
    return folder / f"frames-{shard:05d}.bin"


def seal(fields: Mapping[str, Any], previous: str) -> tuple[bytes, str]:
    """Makes a line of JSON that ends with its checksum, and returns both.

    Args:
        fields: of the line, without "checksum".
        previous: the checksum of the line before, which the new one covers too.
    """
    body = json.dumps(fields, separators=(",", ":"))[:-1].encode("ascii")
    checksum = _checksum(body, previous)
    return body + _end_of_line(checksum), checksum


def unseal(line: bytes, previous: str) -> dict[str, Any] | None:
    """The fields of a line that `seal` wrote, with "checksum"; None for any other line."""
    body = line[:-_SEALED_END]
    if line[len(body) :] != _end_of_line(_checksum(body, previous)):
        return None
    try:
        fields: dict[str, Any] = load_json(line)
    except ValueError:  # written by somebody else, with the right checksum
        return None
    return fields


def _checksum(body: bytes, previous: str) -> str:
    return xxhash.xxh3_128_hexdigest(previous.encode() + body)


def _end_of_line(checksum: str) -> bytes:
    return _SEAL + checksum.encode() + b'"}\n'


def _damage(path: Path, what: str) -> VideoDecodeError:
    return VideoDecodeError(f"{path}: {what}; make the store anew in another folder with {BUILD_COMMAND}")
