"""Finds the file of a clip in a request, stores what was sent for the time of its request, and decodes it."""

from __future__ import annotations

import asyncio
import base64
import logging
import os
import shutil
import stat
import tempfile
import threading
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from typing import IO

from fastapi import HTTPException

from safe_rlhf_video.contracts import show
from safe_rlhf_video.errors import DecoderError, VideoDecodeError
from safe_rlhf_video.serving.request_models import RequestClip
from safe_rlhf_video.serving.server_metrics import ServerMetrics
from safe_rlhf_video.serving.settings import ServerSettings
from safe_rlhf_video.video.pool import DecodePool
from safe_rlhf_video.video.sampling import Sampling, Video

_log = logging.getLogger(__name__)

# Of base64 it holds whole groups of four characters.
_PIECE_BYTES = 1 << 20
# For which a question about readiness waits.
START_S = 5.0
# Linux has no longer ones.
MAX_PATH_CHARS = 4096


class UploadFolder:
    """A private folder for uploads; a new one where somebody, such as a cleaner of temporary files, has removed it.

    Args:
        parent: the folder that holds it; the system's for temporary files by default.
    """

    def __init__(self, parent: Path | None = None) -> None:
        self._parent = parent
        self._lock = threading.Lock()
        self._folders = [self._make()]

    def open_file(self) -> IO[bytes]:
        """Opens a new file, which stays when it is closed; any thread may call it. Raises OSError."""
        with self._lock:
            # Not the same name again: somebody else may have made that one meanwhile.
            if not self._folders[-1].is_dir():
                self._folders.append(self._make())
            folder = self._folders[-1]
        return tempfile.NamedTemporaryFile(dir=folder, delete=False)

    def remove(self) -> None:
        """Removes the folder with all that is in it."""
        for folder in self._folders:
            shutil.rmtree(folder, ignore_errors=True)

    def _make(self) -> Path:
        return Path(tempfile.mkdtemp(prefix="safe_rlhf_video-uploads-", dir=self._parent))


class Uploads:
    """The clips that one request brought, as files that only the server's user can read.

    They go with its block; a file that is being decoded goes after that: what was decoded in vain would be an error.
    """

    def __init__(self, folder: UploadFolder) -> None:
        self._folder = folder
        self._paths: list[Path] = []
        self._readers: dict[Path, Future[Video]] = {}
        self._is_closed = False

    def __enter__(self) -> Uploads:
        return self

    def __exit__(self, *_: object) -> None:
        self._is_closed = True
        for path in self._paths:
            reader = self._readers.get(path)
            if reader is None or reader.cancel() or reader.done():
                path.unlink(missing_ok=True)
            else:
                reader.add_done_callback(partial(_unlink, path))

    def store(self, pieces: Iterable[bytes]) -> Path:
        """Writes the pieces to a new file; any thread may call it.

        Raises:
            HTTPException: the disk has no room.
        """
        path = None
        try:
            with self._folder.open_file() as file:
                path = Path(file.name)
                self._paths.append(path)
                file.writelines(pieces)
        except OSError as error:
            raise no_room(error) from error
        finally:
            if path is not None and self._is_closed:  # the request was given up meanwhile
                path.unlink(missing_ok=True)
        return path

    def hold(self, path: Path, reader: Future[Video]) -> None:
        """Keeps a file until its reader is done."""
        self._readers[path] = reader


def _unlink(path: Path, _: object) -> None:
    path.unlink(missing_ok=True)


class ClipReader:
    """Finds and decodes the clips of requests, in child processes.

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
            max_pixels=int(settings.max_clip_gigapixels * 1e9),
        )
        self._starting: Future[None] | None = None  # the latest start that somebody waited for

    def close(self) -> None:
        """Ends the decoding processes."""
        self._pool.close()

    async def require_decoder(self) -> None:
        """Raises an HTTPException unless a decoding process runs, or one starts within `START_S`."""
        if self._pool.is_started:
            return
        try:
            if self._starting is None or self._starting.done():
                self._starting = self._pool.start()
            async with asyncio.timeout(START_S):
                await asyncio.shield(asyncio.wrap_future(self._starting))
        except TimeoutError:
            raise HTTPException(503, f"no decoding process has started within {START_S:g} s") from None
        except (DecoderError, RuntimeError) as error:
            raise HTTPException(503, "no decoding process starts; the server's log may say why") from error

    async def find(self, clips: Mapping[str, RequestClip], uploads: Uploads) -> dict[str, Path]:
        """Finds or stores the file of each clip.

        Args:
            clips: by the names that messages use for them.

        Raises:
            HTTPException: the first that may not be read, or the disk has no room.
        """
        return {name: await asyncio.to_thread(self._find, name, clip, uploads) for name, clip in clips.items()}

    def _find(self, name: str, clip: RequestClip, uploads: Uploads) -> Path:
        if clip.part is not None:
            return uploads.store(iter(partial(clip.part.file.read, _PIECE_BYTES), b""))
        if clip.path:
            return self._find_path(f"{name}.path", clip)
        try:
            return uploads.store(decode_base64(clip.data))
        except ValueError as error:
            raise HTTPException(400, f"{name}.data: is not base64 ({error}); encode the whole file") from error

    def _find_path(self, name: str, clip: RequestClip) -> Path:
        if clip.whole_path is None:
            return find_under(self._root, clip.path, name)
        try:
            whole = find_under(self._root, clip.whole_path, name)
        except HTTPException:
            return find_under(self._root, clip.path, name)
        try:
            find_under(self._root, clip.path, name)
        except HTTPException:
            return whole
        raise HTTPException(
            400,
            f"{name}: may be {show(clip.whole_path)}, or {show(clip.path)} after its prompt, and both are files; post "
            "paths without prompts as responses",
        )

    async def read(self, path: Path, name: str, uploads: Uploads) -> Video:
        """Decodes one clip; cancelling it while it waits for its turn saves the work.

        Raises:
            HTTPException: the clip cannot be read, or cannot be decoded now.
        """
        try:
            reader = self._pool.submit(path)
            uploads.hold(path, reader)
            video = await asyncio.wrap_future(reader)
        except VideoDecodeError as error:
            self._metrics.decode_failures.inc()
            # Clients do not learn where the file is on the server.
            reason = str(error).removeprefix(f"{path}: ").replace(str(path), name)
            raise HTTPException(400, f"{name}: {reason}") from error
        except (DecoderError, RuntimeError) as error:  # RuntimeError: the pool is closed
            self._metrics.decoder_failures.inc()
            _log.error("%s", str(error).replace(str(path), name))
            message = f"{name}: the decoding process does not start or was killed, which may not be the clip's fault"
            raise HTTPException(503, f"{message}; try again later", {"Retry-After": "10"}) from error
        self._metrics.decoded.inc()
        return video


def decode_base64(text: str) -> Iterator[bytes]:
    """Yields the bytes piece by piece: a clip takes no memory besides its text.

    Raises:
        ValueError: it is not base64.
    """
    for start in range(0, len(text), _PIECE_BYTES):
        piece = text[start : start + _PIECE_BYTES]
        if "=" in piece and start + _PIECE_BYTES < len(text):
            raise ValueError("Excess data after padding")
        yield base64.b64decode(piece, validate=True)


def find_under(root: Path | None, path: str, name: str) -> Path:
    """Returns the regular file that a client's path leads to, all links followed.

    Clients do not learn whether a file outside the root exists: it is "no such file" either way.

    Args:
        root: a real path; None refuses all paths.

    Raises:
        HTTPException: it leads out of the root, or to no regular file.
    """
    missing = HTTPException(400, f"{name}: no such file under the video root; check the path")
    # Before any work: resolving takes time that grows with the square of the length.
    if len(path) > MAX_PATH_CHARS:
        raise missing
    if root is None:
        raise HTTPException(400, f'{name}: this server reads no files; send the clip as "data" or as a file part')
    if "://" in path:
        raise HTTPException(400, f"{name}: is an address, and none is ever fetched; send a path or the clip itself")
    if os.path.isabs(path):
        raise HTTPException(400, f"{name}: expected a path relative to the video root, got an absolute one")
    try:
        real = Path(os.path.realpath(root / path, strict=True))
        mode = real.stat().st_mode
    except (OSError, ValueError) as error:  # ValueError: a NUL, or a character that no file name can hold
        raise missing from error
    if not real.is_relative_to(root):
        raise missing
    if stat.S_ISDIR(mode):
        raise HTTPException(400, f"{name}: is a folder, expected a video file")
    if not stat.S_ISREG(mode):
        raise HTTPException(400, f"{name}: is no regular file, expected a video file")
    return real


def no_room(error: OSError) -> HTTPException:
    """The answer where an upload cannot be written."""
    message = f"the upload cannot be stored on the server ({error.strerror}); try again later"
    return HTTPException(503, message, {"Retry-After": "10"})
