"""Opens the files that clips come in, so that a clip opens no other file, and reads what FFmpeg leaves out of them.

FFmpeg tells the container by the content. A text can be a playlist or a session description, and a file's name a
pattern for pictures: both make FFmpeg open other files or addresses. PyAV is told which demuxers and protocols it may
use. decord cannot be told, and its FFmpeg of 2018 may see another container in a file than PyAV's, so it is given only
containers that no text can pass for, and under a name that means nothing.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import av

from safe_rlhf_video.errors import VideoDecodeError

_OPEN_OPTIONS = {
    "protocol_whitelist": "file",
    "format_whitelist": "mov,mp4,matroska,webm,avi,mpegts,mpeg,flv,asf,ogg,gif,h264,hevc,ivf",
}
BARE_STREAMS = frozenset(("h264", "hevc"))  # frames without a container, and so without times
CONTAINERS_TO_USE = "mp4, mov, mkv, webm, avi, ts or gif"

# Of an mp4, at the top level (ISO/IEC 14496-12, and QuickTime's older ones).
_BOXES = frozenset(
    b"ftyp moov moof mdat mfra free skip wide sidx ssix styp prft emsg meta uuid pdin udta imda mmpu".split()
)

# Of an AVI: what holds further chunks.
_AVI_LISTS = frozenset((b"AVI ", b"AVIX", b"movi", b"rec "))


def open_clip(path: Path) -> av.container.InputContainer:
    """Opens a clip with PyAV, as one of the allowed containers alone.

    Raises:
        av.FFmpegError, ValueError: it is none.
    """
    # An absolute path starts with a slash; FFmpeg would read "a:b.mp4" as an address of a protocol "a".
    # A title that is not UTF-8 is no fault of the frames; PyAV would leave the file open, too.
    return av.open(os.fspath(path.absolute()), options=_OPEN_OPTIONS, metadata_errors="replace")


@contextlib.contextmanager
def name_for_decord(path: Path) -> Iterator[str]:
    """A name under which decord can open a clip, and nothing but the clip, while the block runs.

    Raises:
        VideoDecodeError: decord's FFmpeg might take the file for something else than PyAV's does.
        OSError: it cannot be opened.
    """
    with path.open("rb") as file:
        head = file.read(64)
        # The demuxers that open other files know a text by its first bytes or lines, up to the first zero byte.
        is_mp4 = head[:1] == b"\0" and head[4:8] in _BOXES
        is_matroska = head[:4] == b"\x1aE\xdf\xa3" and (b"matroska" in head or b"webm" in head)
        is_avi = head[:4] == b"RIFF" and head[8:12] == b"AVI "
        if not (is_mp4 or is_matroska or is_avi):
            raise VideoDecodeError('decord is given only mp4, mov, mkv, webm and avi; use backend="pyav"')
        # The name of a file can be a pattern, such as "%d.png", that stands for other files.
        yield f"/dev/fd/{file.fileno()}"


def check_boxes(path: Path) -> None:
    """Raises VideoDecodeError, without the path, if the last box of an mp4 ends beyond the file.

    FFmpeg reads a fragmented file that was cut between two frames as a shorter clip.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        start = 0
        while start + 8 <= size:
            file.seek(start)
            header = file.read(16)
            length, kind = int.from_bytes(header[:4], "big"), header[4:8]
            if length == 1:  # the true length follows the type
                length = int.from_bytes(header[8:], "big")
            # A length of 0 means to the end of the file. FFmpeg judges what is not a box (a tag after the clip).
            if length < 8 or kind not in _BOXES:
                return
            start += length
    if start > size:
        raise VideoDecodeError(f"the file is truncated: {size} of at least {start} bytes are there; fetch it again")


def count_null_frames(path: Path, stream: int) -> tuple[int, int]:
    """Counts the frames of an AVI that are chunks of no bytes, which FFmpeg leaves out.

    Args:
        stream: number of the video stream.

    Returns:
        How many come before the first frame, where nothing is shown, and after it, where the frame before stays.
    """
    frames = (b"%02ddc" % stream, b"%02ddb" % stream)
    before, after, has_begun = 0, 0, False
    size = path.stat().st_size
    with path.open("rb") as file:
        start = 0
        while start + 8 <= size:
            file.seek(start)
            header = file.read(12)
            kind, length = header[:4], int.from_bytes(header[4:8], "little")
            if kind in (b"RIFF", b"LIST") and header[8:] in _AVI_LISTS:
                start += 12  # on to the first chunk in it
                continue
            if kind in frames:
                if length > 0:
                    has_begun = True
                elif has_begun:
                    after += 1
                else:
                    before += 1
            elif not kind.isascii() or b"\0" in kind:  # damaged
                break
            start += 8 + length + length % 2
    return before, after
