"""Reads SafeSora's videos.tar.gz in one pass without trusting it: no member leads out of a folder, no link is followed.

The archive is a stream without seeking. Memory holds one block and the names seen so far, whatever its size.
"""

from __future__ import annotations

import contextlib
import functools
import gzip
import io
import os
import reprlib
import tarfile
import tempfile
from collections.abc import Callable, Container, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, BinaryIO

from safe_rlhf_video.data.record_fields import expected_name
from safe_rlhf_video.errors import ConfigError, SampleError
from safe_rlhf_video.files import make_folder, put_in_place
from safe_rlhf_video.progress import progress_bar

MAX_CLIP_BYTES = 2**30
BLOCK_BYTES = 2**20

# Deflate packs zeros 1000 to 1. Clips do not shrink; a small archive of headers and padding does, below this.
MAX_EXPANSION = 100
EXPANSION_SLACK_BYTES = 64 * 2**20

# tarfile reads a long name or pax record into memory whole, and searches it in quadratic time.
MAX_EXTENDED_HEADER_BYTES = 8192
EXTENDED_HEADER_TYPES = (
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
)
KINDS = {
    tarfile.SYMTYPE: "a symbolic link",
    tarfile.LNKTYPE: "a hard link",
    tarfile.CHRTYPE: "a character device",
    tarfile.BLKTYPE: "a block device",
    tarfile.FIFOTYPE: "a named pipe",
    tarfile.GNUTYPE_SPARSE: "a sparse file",
}


@dataclass(frozen=True)
class ExtractReport:
    """What `extract_clips` did.

    Attributes:
        written: clips written now.
        already_there: clips that an earlier run had written.
        others: members that are not clips, such as a README; they were passed over.
        first_other: the name of the first of them.
    """

    written: int
    already_there: int
    others: int
    first_other: str | None


def iterate_clips(
    archive: Path,
    folder: Path,
    wanted: Container[str] | None = None,
    *,
    on_bytes: Callable[[int], object] | None = None,
    on_other: Callable[[str], object] | None = None,
    max_clip_bytes: int = MAX_CLIP_BYTES,
) -> Iterator[tuple[str, Path]]:
    """Reads the clips of a .tar or .tar.gz one after the other, each into a temporary file.

    A clip is a member `videos/prompt_id/video_id.mp4`. The caller deletes each file after use, so that few exist at any
    time; the last one is deleted here if the iteration is left early.

    Args:
        archive: the file; also a pipe.
        folder: where the temporary files go, and nothing else; made if need be.
        wanted: names of clips, `prompt_id/video_id`, that are to be read; None for all.
        on_bytes: called with the number of bytes that were read from `archive` since the last call.
        on_other: called with the name of each member that is not a clip; it is passed over.
        max_clip_bytes: a larger clip is refused.

    Yields:
        The clip's name `prompt_id/video_id` and its file, in the order of the archive.

    Raises:
        SampleError: the archive is missing, damaged or not to be trusted, or holds no clip. Where it ends too early,
            the clips that were yielded before are whole. Bits that flipped inside may show only at the end: gzip has
            one checksum for all.
        ConfigError: `folder` cannot be written.
    """
    for clip in _Reader(archive, on_bytes, on_other, max_clip_bytes).clips():
        if wanted is not None and clip.name not in wanted:
            continue
        with _explained_writes(folder):
            folder.mkdir(parents=True, exist_ok=True)
            descriptor, name = tempfile.mkstemp(prefix=".clip-", suffix=".mp4", dir=folder)
        path = Path(name)
        try:
            clip.copy_to(os.fdopen(descriptor, "wb"), folder)
        except BaseException:
            path.unlink(missing_ok=True)
            raise
        try:
            yield clip.name, path
        except GeneratorExit:
            path.unlink(missing_ok=True)
            raise


def extract_clips(
    archive: Path, folder: Path, *, progress: bool = True, max_clip_bytes: int = MAX_CLIP_BYTES
) -> ExtractReport:
    """Writes every clip of an archive to `folder/prompt_id/video_id.mp4`.

    Each file is renamed into place when it is whole. A clip that is there in the same size is kept, so an
    interrupted run goes on when it is started again.

    Args:
        archive: as in `iterate_clips`.
        folder: such as `SafeSora/videos`.
        progress: show a bar of the archive's bytes on standard error.
        max_clip_bytes: a larger clip is refused.

    Raises:
        SampleError, ConfigError: as in `iterate_clips`.
    """
    written, already_there, others = 0, 0, 0
    first_other: str | None = None

    def count_other(name: str) -> None:
        nonlocal others, first_other
        others += 1
        first_other = first_other or name

    size = archive.stat().st_size if os.path.isfile(archive) else 0
    with contextlib.ExitStack() as stack:
        on_bytes = None
        if progress:
            bar = stack.enter_context(progress_bar(size, 0, f"unpacking {archive.name}", "B"))
            on_bytes = bar.update
        for clip in _Reader(archive, on_bytes, count_other, max_clip_bytes).clips():
            path = folder / f"{clip.name}.mp4"
            with _explained_writes(folder):
                make_folder(path.parent)
                if Path(os.path.realpath(path.parent)).parent != Path(os.path.realpath(folder)):
                    raise SampleError(f"{path.parent}: is a link that leads out of {folder}; remove it")
                if path.is_file() and not path.is_symlink() and path.stat().st_size == clip.size:
                    already_there += 1
                    continue
                partial = path.with_name(f".{path.name}.partial")
                partial.unlink(missing_ok=True)
                out = partial.open("xb")
            try:
                clip.copy_to(out, folder)
            except BaseException:
                partial.unlink(missing_ok=True)
                raise
            with _explained_writes(folder):
                put_in_place(partial, path)
            written += 1
    return ExtractReport(written, already_there, others, first_other)


@dataclass(frozen=True)
class _Clip:
    """A clip whose bytes come next in the stream."""

    name: str
    size: int
    read: Callable[[int], bytes]  # raises SampleError where the archive is damaged

    def copy_to(self, out: BinaryIO, folder: Path) -> None:
        with _explained_writes(folder), out:
            left = self.size
            while left:
                block = self.read(min(left, BLOCK_BYTES))
                out.write(block)
                left -= len(block)


class _Untrusted(Exception):
    """Raised for a member that an archive of clips never has; the whole archive is refused."""

    def __init__(self, member: str, fault: str) -> None:
        shown = reprlib.Repr()
        shown.maxstring = 400  # SafeSora's names have 140 characters and differ anywhere
        super().__init__(f"member {shown.repr(member)} {fault}")


class _BadChecksum(Exception):
    """Raised when all bytes have come and the checksum is wrong."""


class _Reader:
    """One pass through an archive; every check against hostile archives is here."""

    def __init__(
        self,
        archive: Path,
        on_bytes: Callable[[int], object] | None,
        on_other: Callable[[str], object] | None,
        max_clip_bytes: int,
    ) -> None:
        self._archive = archive
        self._on_bytes = on_bytes
        self._on_other = on_other
        self._max_clip_bytes = max_clip_bytes
        self._num_whole = 0  # clips whose bytes have all been read
        self._seen: set[str] = set()

    def clips(self) -> Iterator[_Clip]:
        with contextlib.ExitStack() as stack:
            with self._explained():
                source = _Source(stack.enter_context(self._archive.open("rb", buffering=0)), self._on_bytes)
            if source.is_empty:
                raise SampleError(f"{self._archive}: is empty; get it from its publisher")
            with self._explained():
                tar = stack.enter_context(
                    tarfile.open(
                        fileobj=source,  # type: ignore[call-overload]
                        mode="r|",
                        bufsize=BLOCK_BYTES,
                        tarinfo=_StrictInfo,
                        encoding="utf-8",
                    )
                )
            while True:
                with self._explained():
                    member = tar.next()
                    if member is None:
                        _check_rest(tar.fileobj)
                        break
                    tar.members.clear()  # tarfile would keep them all
                    name = self._check(member)
                    content = tar.extractfile(member)
                if name is None:
                    if self._on_other is not None and not member.isdir():
                        self._on_other(member.name)
                    continue
                yield _Clip(name, member.size, functools.partial(self._read, content))
                self._num_whole += 1
        if not self._num_whole:
            raise SampleError(
                f"{self._archive}: holds no clip ({len(self._seen)} other files), expected members "
                "videos/prompt_id/video_id.mp4; is it the right archive?"
            )

    def _check(self, member: tarfile.TarInfo) -> str | None:
        """The clip's name, None for a member that is no clip; raises _Untrusted."""
        parts = _checked_parts(member)
        path = "/".join(parts)
        if path in self._seen:
            raise _Untrusted(member.name, "is there twice")
        if member.isdir():
            return None
        self._seen.add(path)
        match parts:
            case ["videos", prompt_id, file_name] if file_name.endswith(".mp4") and file_name != ".mp4":
                if member.size > self._max_clip_bytes:
                    raise _Untrusted(member.name, f"has {member.size} bytes, more than {self._max_clip_bytes}")
                video_id = file_name.removesuffix(".mp4")
                for part in (prompt_id, video_id):  # as the ids of samples have to be
                    if (expected := expected_name(part)) is not None:
                        raise _Untrusted(member.name, f"has the part {reprlib.repr(part)} in place of {expected}")
                return f"{prompt_id}/{video_id}"
        return None

    def _read(self, content: IO[bytes], size: int) -> bytes:
        with self._explained():
            block = content.read(size)
            if not block:
                raise EOFError
        return block

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        """Turns whatever a damaged archive raises into one line."""
        where, count = self._archive, self._num_whole
        try:
            yield
        except _Untrusted as error:
            raise SampleError(f"{where}: {error}; the archive is not trusted, get it from its publisher") from error
        except (FileNotFoundError, IsADirectoryError, PermissionError) as error:
            raise SampleError(f"{where}: cannot be read ({error.strerror}); check the path and its rights") from error
        except _BadChecksum as error:
            raise SampleError(
                f"{where}: its checksum is wrong, so at least one of its {count} clips is damaged and nobody can tell "
                "which; fetch it again and read all of them again"
            ) from error
        # tarfile raises more than TarError on damaged headers: ValueError, OverflowError and IndexError are known.
        except Exception as error:
            if isinstance(error, EOFError) or "unexpected end of data" in str(error):
                raise SampleError(
                    f"{where}: ends too early, after {count} whole clips (they stay good); fetch it again"
                ) from error
            reason = " ".join(str(error).split()) or type(error).__name__
            raise SampleError(f"{where}: damaged after {count} clips ({reason}); fetch it again") from error


@contextlib.contextmanager
def _explained_writes(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ConfigError(
            f"{folder}: cannot be written ({error.strerror}); free space or give another folder, then run it again"
        ) from error


class _Source:
    """The uncompressed bytes of a file or a pipe."""

    def __init__(self, raw: io.RawIOBase, on_bytes: Callable[[int], object] | None) -> None:
        self._counted = _Counted(raw, on_bytes)
        self._expanded = 0
        buffered = io.BufferedReader(self._counted, BLOCK_BYTES)
        # GzipFile checks length and checksum at the end of the stream; tarfile's own "r|gz" does not.
        begin = buffered.peek(2)[:2]
        self.is_empty = not begin
        self._stream = gzip.GzipFile(fileobj=buffered, mode="rb") if begin == b"\x1f\x8b" else buffered

    def read(self, size: int) -> bytes:
        try:
            block = self._stream.read(size)
        except gzip.BadGzipFile as error:
            if "CRC" in str(error) or "length" in str(error):
                raise _BadChecksum from error
            raise
        self._expanded += len(block)
        if self._expanded > MAX_EXPANSION * self._counted.total + EXPANSION_SLACK_BYTES:
            raise ValueError(f"it unpacks to more than {MAX_EXPANSION} times its size, as no clips do")
        return block


class _Counted(io.RawIOBase):
    """Counts the bytes that have been read from a file."""

    def __init__(self, raw: io.RawIOBase, on_bytes: Callable[[int], object] | None) -> None:
        self._raw = raw
        self._on_bytes = on_bytes
        self.total = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]
        count = self._raw.readinto(buffer) or 0
        self.total += count
        if self._on_bytes is not None:
            self._on_bytes(count)
        return count


class _StrictInfo(tarfile.TarInfo):
    """Headers in which nothing may be wrong; tarfile itself takes a damaged one for the end of the archive."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> _StrictInfo:
        if len(buf) < tarfile.BLOCKSIZE:
            raise EOFError
        try:
            info = super().frombuf(buf, encoding, errors)
        except tarfile.HeaderError as error:
            if not any(buf):  # a block of zeros is the regular end
                raise
            raise tarfile.ReadError(str(error)) from error
        if info.size < 0:
            raise _Untrusted(info.name, f"has a size of {info.size} bytes")
        if info.type == tarfile.GNUTYPE_SPARSE:
            raise _Untrusted(info.name, f"is {KINDS[info.type]}")
        if info.type in EXTENDED_HEADER_TYPES and info.size > MAX_EXTENDED_HEADER_BYTES:
            raise _Untrusted(info.name, f"has a header of {info.size} bytes")
        return info


def _checked_parts(member: tarfile.TarInfo) -> list[str]:
    """The components of a member's name; raises _Untrusted unless it is a plain file or folder below a folder."""
    name = member.name
    if not (member.isreg() or member.isdir()):
        kind = KINDS.get(member.type, f"of the unknown type {member.type!r}")
        raise _Untrusted(name, f"is {kind}")
    if member.issparse():
        raise _Untrusted(name, f"is {KINDS[tarfile.GNUTYPE_SPARSE]}")
    # A pax record's size replaces that of the header, and tarfile reads "-5" and "1_0" as numbers.
    size = member.pax_headers.get("size", "0")
    if member.size < 0 or not (size.isascii() and size.isdecimal()):
        raise _Untrusted(name, f"has a size of {size!r} bytes")
    parts = name.split("/")
    if name.startswith("/") or ".." in parts or "\\" in name or "\0" in name:
        raise _Untrusted(name, "has a name that could lead out of a folder")
    try:
        name.encode()
    except UnicodeEncodeError:
        raise _Untrusted(name, "has a name that is not UTF-8") from None
    return [part for part in parts if part not in ("", ".")]


def _check_rest(stream: Any) -> None:
    """Reads on to the end of the file, where gzip's checksum is; only zeros may follow the end mark."""
    while block := stream.read(BLOCK_BYTES):
        if block.count(0) != len(block):
            raise tarfile.ReadError("more follows after its end mark")
