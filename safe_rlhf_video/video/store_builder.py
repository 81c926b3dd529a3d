"""Builds a frame store: worker processes decode the clips, and this process appends them in order.

Frames are on the disk before the row that names them is written, so a kill or a power cut at any moment leaves at most
some extra bytes; the next build cuts them off and goes on. The result depends only on the clips and their order: a
build that was interrupted, or had more workers, ends with the same bytes.
"""

import contextlib
import dataclasses
import errno
import io
import itertools
import json
import os
import time
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import xxhash
from tqdm import tqdm

from safe_rlhf_video.errors import ConfigError, SafeRLHFVideoError, VideoDecodeError
from safe_rlhf_video.files import flush, lock, make_folder, write_whole
from safe_rlhf_video.progress import progress_bar
from safe_rlhf_video.video.codec import Codec
from safe_rlhf_video.video.decoding import Backend
from safe_rlhf_video.video.frame_store import (
    FORMAT_VERSION,
    HEADER_NAME,
    INDEX_NAME,
    QUARANTINE_NAME,
    QuarantinedClip,
    StoredClip,
    check_sampling,
    check_shards,
    read_header,
    read_index,
    seal,
    shard_file,
)
from safe_rlhf_video.video.pool import DecodePool, EncodedClip
from safe_rlhf_video.video.sampling import Sampling

SHARD_BYTES = 1 << 30

# Clips that may wait for a slow one before them: little memory, at 1.2 MB each.
AHEAD_PER_WORKER = 16

# How much of a build may pass in waiting for the disk. Rows whose frames have not reached it are kept in memory, and a
# kill loses them: on a usual disk none or the last few.
_FLUSH_SHARE = 0.1

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@dataclass(frozen=True)
class ClipFile:
    """A clip to put into a store.

    Attributes:
        name: prompt_id/video_id.
        path: the video file.
        is_temporary: the builder deletes it after use, and does not identify it by its time of change.
    """

    name: str
    path: Path
    is_temporary: bool = False


@dataclass(frozen=True)
class StoreReport:
    """What a build has done.

    Attributes:
        num_clips: different names that were given.
        num_decoded: clips added or replaced.
        num_replaced: those of them that replaced frames of another file.
        num_kept: clips that were there already, including those in quarantine.
        quarantined: name -> reason, of the names that were given.
        num_bytes: of frames, appended now.
    """

    num_clips: int
    num_decoded: int
    num_replaced: int
    num_kept: int
    quarantined: dict[str, str]
    num_bytes: int


def build_store(
    folder: str | os.PathLike[str],
    sampling: Sampling,
    clips: Iterable[ClipFile],
    total: int,
    *,
    codec: Codec | None = None,
    num_workers: int = 2,
    timeout_s: float = 60.0,
    shard_bytes: int = SHARD_BYTES,
    backend: Backend = "pyav",
    verify: bool = False,
) -> StoreReport:
    """Makes a frame store, continues an interrupted one, or adds clips to a whole one, with a progress bar.

    A stored clip is kept if its file has the recorded size and time of change, or the recorded hash, or is gone, or
    cannot be read any more. A clip whose file has changed is decoded anew. A clip that cannot be read goes into
    quarantine with the reason; every build tries it again, for the machine may have caused the error.

    Args:
        folder: the store; made if it is not there.
        sampling: which frames to keep, and their size.
        clips: pulled only a few ahead of decoding, so they may come from an archive that is being read.
        total: number of clips, for the progress bar.
        codec: how frames are stored, raw by default.
        num_workers: decoding processes.
        timeout_s: seconds one clip may take.
        shard_bytes: the next file of frames is begun when one would grow beyond this.
        backend: as in `decoding.read_video`.
        verify: read every stored clip, and decode it anew if its frames have changed.

    Raises:
        ConfigError: the folder holds something else, or a store of another sampling or codec; another process is
            building it; the disk is full (what is written stays good); two files have one name.
        VideoDecodeError: the store is damaged.
    """
    codec = codec or Codec()
    folder = Path(folder)
    try:
        with (
            _StoreWriter(folder, sampling, codec, shard_bytes) as writer,
            DecodePool(sampling, num_workers, timeout_s, backend) as pool,
            progress_bar(total, 0, "preparing", "clip") as bar,
        ):
            build = _Build(writer, bar, verify)
            try:
                build.run(pool, clips, codec, AHEAD_PER_WORKER * num_workers)
            except OSError as error:
                if error.errno not in _FULL:
                    raise
                needed = max(0, total - bar.n) * writer.num_bytes / max(1, build.num_decoded)
                raise ConfigError(
                    f"{folder}: the disk is full ({error.strerror}); what is there is good: free "
                    f"{max(needed / 1e9, 0.1):.1f} GB or more and run the same command again"
                ) from error
            return build.report()
    except OSError as error:
        raise ConfigError(
            f"{error.filename or folder}: cannot be written ({error.strerror}); what is in the store is good: mend "
            "this and run the same command again"
        ) from error


@dataclass(frozen=True)
class _Job:
    clip: ClipFile
    size: int | None  # None: there is no such file
    mtime_ns: int | None
    is_repeated: bool  # its name came before in this build, with another path


class _Build:
    """One build: decides which clips are decoded, and what happens to each."""

    def __init__(self, writer: "_StoreWriter", bar: tqdm, verify: bool) -> None:
        self.num_decoded = 0
        self._num_replaced = 0
        self._writer = writer
        self._bar = bar
        self._verify = verify
        self._damaged: set[str] = set()
        self._paths: dict[str, Path] = {}
        self._num_new = 0
        self._pending: deque[_Job] = deque()
        self._source_error: SafeRLHFVideoError | None = None

    def run(self, pool: DecodePool, clips: Iterable[ClipFile], codec: Codec, ahead: int) -> None:
        outcomes = pool.encode(self._requests(clips), codec, ahead)
        try:
            for outcome in outcomes:
                self._take(self._pending[0], outcome)
                self._finish(self._pending.popleft().clip)
        finally:
            for job in self._pending:
                _delete_temporary(job.clip)
        # If a source breaks off late, the waiting clips must not be lost, at every new try.
        if self._source_error is not None:
            raise self._source_error

    def report(self) -> StoreReport:
        rows = self._writer.rows
        quarantined = {name: row.error for name in self._paths if isinstance(row := rows.get(name), QuarantinedClip)}
        num_kept = len(self._paths) - self._num_new
        return StoreReport(
            len(self._paths), self.num_decoded, self._num_replaced, num_kept, quarantined, self._writer.num_bytes
        )

    def _requests(self, clips: Iterable[ClipFile]) -> Iterator[tuple[Path, str | None]]:
        """The clips to decode; `_pending` has their jobs, in the same order."""
        try:
            for clip in clips:
                is_repeated = clip.name in self._paths
                is_same_file = self._paths.setdefault(clip.name, clip.path) == clip.path
                job = _Job(clip, *_file_state(clip), is_repeated)
                row = self._writer.rows.get(clip.name)
                if self._verify and not is_repeated and isinstance(row, StoredClip) and self._writer.is_damaged(row):
                    self._damaged.add(clip.name)
                if (is_repeated and is_same_file) or self._is_kept(row, job):
                    self._finish(clip)
                    continue
                self._pending.append(job)
                is_known = isinstance(row, StoredClip) and clip.name not in self._damaged
                yield clip.path, row.file_sha256 if is_known and isinstance(row, StoredClip) else None
        except SafeRLHFVideoError as error:
            self._source_error = error

    def _is_kept(self, row: StoredClip | QuarantinedClip | None, job: _Job) -> bool:
        if not isinstance(row, StoredClip) or row.name in self._damaged:
            return False
        is_same = (job.size, job.mtime_ns) == (row.file_size, row.file_mtime_ns)
        # A stored clip does not need its file any more. The hash tells temporary files of equal size apart.
        return job.size is None or (is_same and job.mtime_ns is not None)

    def _take(self, job: _Job, outcome: EncodedClip | VideoDecodeError | None) -> None:
        name = job.clip.name
        row = self._writer.rows.get(name)
        if outcome is None:
            if isinstance(row, StoredClip) and not job.is_repeated and job.mtime_ns != row.file_mtime_ns:
                # The next build knows it by its time, without hashing it again.
                self._writer.append_row(dataclasses.replace(row, file_mtime_ns=job.mtime_ns))
            return
        if job.is_repeated and isinstance(row, StoredClip):
            # Another copy of the file has just been stored or found unchanged.
            if isinstance(outcome, EncodedClip) and outcome.sha256 != row.file_sha256:
                raise ConfigError(
                    f"{name}: two different files have this name, {self._paths[name]} and {job.clip.path}; rename one "
                    "or prepare them into two stores"
                )
            return
        if isinstance(outcome, EncodedClip):
            self._num_replaced += isinstance(row, StoredClip) and row.file_sha256 != outcome.sha256
            self._writer.append(job, outcome)
            self._damaged.discard(name)
            self.num_decoded += 1
        elif isinstance(row, StoredClip) and name not in self._damaged:
            return
        else:
            reason = str(outcome).removeprefix(f"{job.clip.path}: ")
            new_row = QuarantinedClip(name, job.size, job.mtime_ns, reason)
            if new_row == row:
                return
            self._writer.append_row(new_row)
        self._num_new += not job.is_repeated

    def _finish(self, clip: ClipFile) -> None:
        _delete_temporary(clip)
        self._bar.set_postfix_str(f"{self._writer.num_bytes / 1e6:,.0f} MB written", refresh=False)
        self._bar.update()


class _StoreWriter:
    """The end of a store, which only this process may write.

    Attributes:
        rows: as in `frame_store.Index`.
        num_bytes: of frames appended through this writer.
    """

    def __init__(self, folder: Path, sampling: Sampling, codec: Codec, shard_bytes: int) -> None:
        if shard_bytes < 1:
            raise ConfigError(f"shard_bytes: expected at least 1, got {shard_bytes}")
        self._folder = folder
        self._shard_bytes = shard_bytes
        self.num_bytes = 0
        self._waiting: list[bytes] = []  # rows whose frames may not have reached the disk
        self._opened_s, self._flushing_s = time.monotonic(), 0.0
        _check_purpose(folder)
        make_folder(folder)
        with contextlib.ExitStack() as opened:
            self._index = opened.enter_context(io.FileIO(folder / INDEX_NAME, "ab"))
            self._shard_closer = opened.enter_context(contextlib.ExitStack())
            lock(self._index, folder)
            self._checksum = _write_or_check_header(folder, sampling, codec)
            self._recover()
            self._opened = opened.pop_all()

    def __enter__(self) -> "_StoreWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        # If the disk is full, the next build writes it.
        with self._opened, contextlib.suppress(OSError) if error else contextlib.nullcontext():
            self._write_rows()
            self._write_quarantine()

    def append(self, job: _Job, clip: EncodedClip) -> None:
        """Appends a clip: its frames, unless an equal file has stored them, and then its row."""
        twin = self._by_file.get(clip.sha256)
        if twin is None:
            shard, offset = self._append_payload(clip.payload.data)
            checksum = xxhash.xxh3_128_hexdigest(clip.payload.data)
        else:
            shard, offset, checksum = twin.shard, twin.offset, twin.payload_checksum
        row = StoredClip(
            name=job.clip.name,
            file_sha256=clip.sha256,
            file_size=job.size,
            file_mtime_ns=job.mtime_ns,
            shard=shard,
            offset=offset,
            piece_bytes=list(clip.piece_bytes),
            shape=list(clip.shape),
            timestamps=clip.timestamps.tolist(),
            payload_checksum=checksum,
        )
        self.append_row(row)
        self._by_file[clip.sha256] = row

    def append_row(self, row: StoredClip | QuarantinedClip) -> None:
        line, self._checksum = seal(dataclasses.asdict(row), self._checksum)
        self._waiting.append(line)
        self.rows[row.name] = row
        if self._flushing_s <= _FLUSH_SHARE * (time.monotonic() - self._opened_s):
            self._write_rows()

    def is_damaged(self, row: StoredClip) -> bool:
        """Whether the frames of a row have changed; further clips then do not share them."""
        with shard_file(self._folder, row.shard).open("rb") as file:
            file.seek(row.offset)
            payload = file.read(row.end - row.offset)
        if xxhash.xxh3_128_hexdigest(payload) == row.payload_checksum:
            return False
        twin = self._by_file.get(row.file_sha256)
        if twin is not None and (twin.shard, twin.offset) == (row.shard, row.offset):
            del self._by_file[row.file_sha256]
        return True

    def _write_rows(self) -> None:
        """Writes the rows that wait, after their frames, and returns when both are on the disk."""
        if not self._waiting:
            return
        lines, self._waiting = b"".join(self._waiting), []  # a write that fails must not be begun again
        began_s = time.monotonic()
        os.fsync(self._shard_file.fileno())
        _write_all(self._index, memoryview(lines))
        os.fsync(self._index.fileno())
        self._flushing_s += time.monotonic() - began_s

    def _append_payload(self, payload: memoryview) -> tuple[int, int]:
        """Shard and offset where it was written."""
        if self._shard_end and self._shard_end + len(payload) > self._shard_bytes:
            self._write_rows()
            os.fsync(self._shard_file.fileno())
            self._open_shard(self._shard + 1, 0)
        offset = self._shard_end
        _write_all(self._shard_file, payload)
        self._shard_end += len(payload)
        self.num_bytes += len(payload)
        return self._shard, offset

    def _recover(self) -> None:
        """Cuts off what a killed build had begun, and continues from there."""
        index = read_index(self._folder, self._checksum)
        check_shards(self._folder, index.shard_ends)
        os.ftruncate(self._index.fileno(), index.num_bytes)
        self.rows, self._by_file, self._checksum = index.rows, index.by_file, index.checksum
        last = max(index.shard_ends, default=0)
        for shard in itertools.count(last + 1):
            try:
                shard_file(self._folder, shard).unlink()
            except FileNotFoundError:
                break
        self._open_shard(last, index.shard_ends.get(last, 0))

    def _open_shard(self, shard: int, end: int) -> None:
        """Continues a shard at `end`, and cuts off what follows."""
        self._shard_closer.close()
        self._shard_file = self._shard_closer.enter_context(io.FileIO(shard_file(self._folder, shard), "ab"))
        os.ftruncate(self._shard_file.fileno(), end)
        flush(self._folder)
        self._shard, self._shard_end = shard, end

    def _write_quarantine(self) -> None:
        rows = [
            {"name": row.name, "error": row.error, "file_size": row.file_size}
            for row in self.rows.values()
            if isinstance(row, QuarantinedClip)
        ]
        write_whole(self._folder / QUARANTINE_NAME, "".join(json.dumps(row) + "\n" for row in rows))


def _check_purpose(folder: Path) -> None:
    """Raises ConfigError if a store would mix with other files."""
    if not folder.exists():
        return
    if not folder.is_dir():
        raise ConfigError(f"{folder}: is a file, expected a folder for the frame store; name another")
    names = {entry.name for entry in folder.iterdir() if not entry.name.startswith(".")}
    if HEADER_NAME not in names and (others := sorted(names - {INDEX_NAME})):
        raise ConfigError(f"{folder}: holds other files ({others[0]}) and no frame store; name a new or empty folder")


def _write_or_check_header(folder: Path, sampling: Sampling, codec: Codec) -> str:
    """The checksum of store.json, which is written if the store is new."""
    path = folder / HEADER_NAME
    if path.exists() or (folder / INDEX_NAME).stat().st_size:
        stored_sampling, stored_codec, checksum = read_header(folder)
        check_sampling(folder, stored_sampling, sampling)
        if stored_codec.to_dict() != codec.to_dict():
            raise ConfigError(
                f"{path}: the frame store has codec {stored_codec.to_dict()}, not {codec.to_dict()} as asked for; ask "
                "for the same or make another store"
            )
        return checksum
    fields = {"format_version": FORMAT_VERSION, "sampling": sampling.to_dict(), "codec": codec.to_dict()}
    line, checksum = seal(fields, "")
    write_whole(path, line)
    return checksum


def _file_state(clip: ClipFile) -> tuple[int | None, int | None]:
    """Size and time of change of the file; None if there is no file, or the time means nothing."""
    try:
        status = clip.path.stat()
    except (OSError, ValueError):  # the worker finds out why
        return None, None
    return status.st_size, None if clip.is_temporary else status.st_mtime_ns


def _delete_temporary(clip: ClipFile) -> None:
    if clip.is_temporary:
        clip.path.unlink(missing_ok=True)


def _write_all(file: io.FileIO, content: memoryview) -> None:
    while content:
        content = content[file.write(content) :]
