"""From a clip in a request to its frames: a file under the video root, or bytes that lie on disk for a moment."""

from __future__ import annotations

import asyncio
import base64
import binascii
import os
import stat
import tempfile
from pathlib import Path

from safe_rlhf_video.errors import VideoDecodeError
from safe_rlhf_video.serving.request_fields import RequestError, VideoReference
from safe_rlhf_video.serving.server_metrics import ServerMetrics
from safe_rlhf_video.serving.settings import ServerSettings
from safe_rlhf_video.video.pool import DecodePool
from safe_rlhf_video.video.sampling import Sampling, Video


class Uploads:
    """The uploaded files of one request, in a folder that only the server's user can read; gone with its block."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._paths: list[Path] = []
        self._is_closed = False

    def __enter__(self) -> Uploads:
        return self

    def __exit__(self, *_: object) -> None:
        self._is_closed = True
        for path in self._paths:
            path.unlink(missing_ok=True)

    def create(self) -> Path:
        """A new empty file.

        Raises:
            RequestError: the disk has no room for it.
        """
        try:
            descriptor, name = tempfile.mkstemp(dir=self._folder)
        except OSError as error:
            raise no_room(error) from error
        os.close(descriptor)
        self._paths.append(Path(name))
        return self._paths[-1]

    def write(self, content: bytes) -> Path:
        """A new file with this content; as `create`, but another thread may do it."""
        path = self.create()
        try:
            path.write_bytes(content)
        except OSError as error:
            raise no_room(error) from error
        finally:
            # Its request may have been given up meanwhile.
            if self._is_closed:
                path.unlink(missing_ok=True)
        return path


class ClipReader:
    """Decodes the clips of requests in child processes.

    Args:
        sampling: of the model.
    """

    def __init__(self, settings: ServerSettings, sampling: Sampling, metrics: ServerMetrics) -> None:
        self._root = None if settings.video_root is None else settings.video_root.resolve()
        self._metrics = metrics
        self._pool = DecodePool(
            sampling,
            settings.workers,
            settings.timeout_s,
            memory_bytes=settings.decode_memory_mb * 10**6,
            max_seconds=settings.max_clip_seconds,
        )

    def close(self) -> None:
        """End the decoding processes."""
        self._pool.close()

    async def find(self, reference: VideoReference, uploads: Uploads) -> Path:
        """The file that a clip lies in.

        Raises:
            RequestError: there is none that may be read.
        """
        if reference.file is not None:
            return reference.file
        if reference.path is not None:
            return await asyncio.to_thread(find_under, self._root, reference.path, f"{reference.field}.path")
        return await asyncio.to_thread(_write_base64, reference, uploads)

    async def read(self, path: Path, field: str) -> Video:
        """Decode one clip; cancelling it while it waits for its turn spares the work.

        Raises:
            RequestError: the clip cannot be read.
        """
        try:
            video = await asyncio.wrap_future(self._pool.submit(path))
        except VideoDecodeError as error:
            self._metrics.add_decoded(False)
            # Where the file lies on the server is not for clients.
            reason = str(error).removeprefix(f"{path}: ").replace(str(path), field)
            raise RequestError(400, f"{field}: {reason}") from error
        except RuntimeError as error:  # closed, or no decoding process starts
            raise RequestError(503, f"{field}: cannot be decoded now; try again later") from error
        self._metrics.add_decoded(True)
        return video


def find_under(root: Path | None, path: str, field: str) -> Path:
    """The regular file that a client's path leads to, all links followed.

    Whether a file outside the root exists is not told: it is "no such file" either way.

    Args:
        root: a real path; None refuses all.

    Raises:
        RequestError: it leads out of the root, or to no regular file.
    """
    if root is None:
        raise RequestError(400, f'{field}: this server reads no files; send the clip as "data" or as a file part')
    if "://" in path:
        raise RequestError(400, f"{field}: is an address, and none is ever fetched; send a path or the clip itself")
    if os.path.isabs(path):
        raise RequestError(400, f"{field}: expected a path relative to the video root, got an absolute one")
    missing = RequestError(400, f"{field}: no such file under the video root; check the path")
    try:
        real = Path(os.path.realpath(root / path, strict=True))
        mode = real.stat().st_mode
    except (OSError, ValueError) as error:  # ValueError: a NUL, or what no file name can hold
        raise missing from error
    if not real.is_relative_to(root):
        raise missing
    if stat.S_ISDIR(mode):
        raise RequestError(400, f"{field}: is a folder, expected a video file")
    if not stat.S_ISREG(mode):
        raise RequestError(400, f"{field}: is no regular file, expected a video file")
    return real


def no_room(error: OSError) -> RequestError:
    """What a client hears when an upload cannot be written."""
    return RequestError(503, f"the upload cannot be stored on the server ({error.strerror}); try again later", 10)


def _write_base64(reference: VideoReference, uploads: Uploads) -> Path:
    assert reference.data is not None
    try:
        content = base64.b64decode(reference.data, validate=True)
    except (binascii.Error, ValueError) as error:
        raise RequestError(400, f"{reference.field}.data: is not base64 ({error}); encode the whole file") from error
    return uploads.write(content)
