"""Decodes clips in child processes, where a file that crashes or hangs a decoder does no harm.

Each thread of a small executor owns one worker process and gives it one clip at a time. So it is certain which clip has
killed a worker or is late, and results wait as futures in the order of the requests.
"""

import contextlib
import fcntl
import json
import math
import os
import selectors
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, TypeVar

import numpy as np

from safe_rlhf_video.errors import ConfigError, DecoderError, VideoDecodeError
from safe_rlhf_video.video.codec import Codec
from safe_rlhf_video.video.decoding import MAX_CLIP_PIXELS, Backend, check_backend
from safe_rlhf_video.video.sampling import Sampling, Video
from safe_rlhf_video.video.worker import LENGTH, encode_message

# Importing NumPy, Pillow and the decoders may be slow on a cold network disk, which is no fault of a clip.
START_TIMEOUT_S = 120.0

# Memory that a worker may use to decode one clip. Eight frames of 8K video take 1.6 GB.
MEMORY_BYTES = 8 << 30

# Signals that end a worker from outside: the system's when memory is short, or a person's. Others show that the clip
# has crashed the decoder.
_KILLS = frozenset({signal.SIGKILL, signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGQUIT})
_NUM_TRIES = 2  # for a clip whose worker was killed

# What a worker may know of this process's environment; nothing else, because keys and tokens stand there.
_VARIABLES = frozenset({"PATH", "LANG", "LANGUAGE", "TZ", "TMPDIR", "VIRTUAL_ENV", "CONDA_PREFIX"})
_VARIABLE_PREFIXES = ("LC_", "PYTHON", "OMP_", "MKL_", "OPENBLAS_", "MALLOC_", "GLIBC_", "LD_", "DECORD_")

# By default a pipe holds 64 KiB; a clip of a megabyte would wake both ends twenty times.
_PIPE_BYTES = 1 << 20

Job = TypeVar("Job")
Result = TypeVar("Result")


@dataclass(frozen=True, eq=False)
class EncodedClip:
    """A clip as the frame store keeps it.

    Attributes:
        sha256: of the video file, hexadecimal.
        shape: (T, H, W, 3) of the frames.
        timestamps: float64 (T,), seconds from the first frame of the clip.
        piece_bytes: lengths of the pieces of `codec.encode_frames`.
        payload: uint8, the pieces one after the other.
    """

    sha256: str
    shape: tuple[int, int, int, int]
    timestamps: np.ndarray
    piece_bytes: tuple[int, ...]
    payload: np.ndarray


class DecodePool:
    """Reads clips in worker processes that start when they are first needed.

    Use it as a context manager or call `close()`. Any thread of the process that made a pool may use it. A clip whose
    worker was killed, by the system when memory is short, is tried twice; all methods that read clips then raise
    DecoderError, as they do if no worker starts.

    Args:
        sampling: which frames of a clip to keep, and their size.
        num_workers: processes to decode in.
        timeout_s: seconds one clip may take; a worker that takes longer is killed and replaced.
        backend: as in `decoding.read_video`.
        memory_bytes: memory that a worker may use to decode one clip, if the system can limit it (Linux).
        max_seconds: longer clips are not decoded; None for any length.
        max_pixels: clips with more in all their frames together are not decoded.

    Raises:
        ConfigError: an argument is wrong.
    """

    def __init__(
        self,
        sampling: Sampling,
        num_workers: int = 2,
        timeout_s: float = 60.0,
        backend: Backend = "pyav",
        memory_bytes: int = MEMORY_BYTES,
        max_seconds: float | None = None,
        max_pixels: int = MAX_CLIP_PIXELS,
    ) -> None:
        if num_workers < 1:
            raise ConfigError(f"num_workers: expected at least 1, got {num_workers}")
        if not (timeout_s > 0 and math.isfinite(timeout_s)):
            raise ConfigError(f"timeout_s: expected a positive number of seconds, got {timeout_s}")
        check_backend(backend)
        self._setup = {
            "sampling": sampling.to_dict(),
            "backend": backend,
            "timeout_s": timeout_s,
            "memory_bytes": memory_bytes,
            "max_seconds": max_seconds,
            "max_pixels": max_pixels,
        }
        self._timeout_s = timeout_s
        self._threads = ThreadPoolExecutor(num_workers, thread_name_prefix="decode")
        self._own = threading.local()  # .worker: the process of the calling thread
        self._workers: set[_Worker] = set()
        self._lock = threading.Lock()  # guards _workers and _closed
        self._closed = False
        self._process_id = os.getpid()

    def __enter__(self) -> "DecodePool":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Ends all workers, even in the middle of a clip; the pool cannot be used afterwards. Closing twice is fine."""
        with self._lock:
            self._closed = True
            for worker in self._workers:
                worker.process.kill()
        self._threads.shutdown(wait=True, cancel_futures=True)
        for worker in self._workers:
            worker.stop()
        self._workers.clear()

    def read(self, paths: Sequence[str | os.PathLike[str]]) -> list[Video]:
        """Decodes clips; the result has the order of `paths`.

        Raises:
            VideoDecodeError: for the first clip in `paths` that failed.
        """
        return list(self.iterate(paths))

    def submit(self, path: str | os.PathLike[str]) -> Future[Video]:
        """Decodes one clip in its turn; cancelling the future before that saves the work.

        The future raises VideoDecodeError if the clip cannot be read.
        """
        self._check_usable()
        return self._threads.submit(self._decode, _place(path))

    def start(self) -> Future[None]:
        """Starts a worker in the turn of the clips that wait, unless the thread whose turn it is has one."""
        self._check_usable()

        def start() -> None:
            self._worker()

        return self._threads.submit(start)

    @property
    def is_started(self) -> bool:
        """Whether a worker runs that has started in full."""
        with self._lock:
            return any(worker.is_set_up and worker.process.poll() is None for worker in self._workers)

    def iterate(self, paths: Iterable[str | os.PathLike[str]], ahead: int = 64) -> Iterator[Video]:
        """Decodes clips while earlier ones are used, and yields them in the order of `paths`.

        At most `ahead` paths are pulled before their clips are asked for, so at most that many clips are held in
        memory. You may leave the iteration early, and start another one.

        Raises:
            VideoDecodeError: at the turn of a clip that failed; the clips before it have been yielded.
        """
        with contextlib.closing(self.attempt(paths, ahead)) as outcomes:
            for outcome in outcomes:
                if isinstance(outcome, VideoDecodeError):
                    raise outcome
                yield outcome

    def attempt(
        self, paths: Iterable[str | os.PathLike[str]], ahead: int = 64
    ) -> Generator[Video | VideoDecodeError, None, None]:
        """As `iterate`, but yields the error of a clip that failed, and goes on."""
        return self._in_order(self._decode, map(_place, paths), ahead)

    def encode(
        self, clips: Iterable[tuple[Path, str | None]], codec: Codec, ahead: int = 64
    ) -> Generator[EncodedClip | VideoDecodeError | None, None, None]:
        """Hashes, decodes and encodes clips for the frame store; a clip that fails does not end the iteration.

        Args:
            clips: the path of each, and the SHA-256 that it need not be decoded for, if one is known.
            codec: how frames are stored.
            ahead: as in `iterate`.

        Yields:
            In the order of `clips`: the clip, or its error, or None for a file that has the known hash.
        """

        def encode(clip: tuple[_Place, str | None]) -> EncodedClip | None:
            place, known_sha256 = clip
            header, timestamps, payload = self._ask(place, {"codec": codec.to_dict(), "known_sha256": known_sha256})
            if "unchanged" in header:
                return None
            return EncodedClip(
                header["sha256"], tuple(header["shape"]), timestamps, tuple(header["piece_bytes"]), payload
            )

        return self._in_order(encode, ((_place(path), sha256) for path, sha256 in clips), ahead)

    def _in_order(
        self, task: Callable[[Job], Result], jobs: Iterable[Job], ahead: int
    ) -> Generator[Result | VideoDecodeError, None, None]:
        if ahead < 1:
            raise ConfigError(f"ahead: expected at least 1, got {ahead}")
        self._check_usable()
        source = iter(jobs)
        pending: deque[Future[Result]] = deque()
        try:
            while True:
                for job in islice(source, ahead - len(pending)):
                    pending.append(self._threads.submit(task, job))
                if not pending:
                    return
                future = pending.popleft()
                try:
                    outcome: Result | VideoDecodeError = future.result()
                except VideoDecodeError as error:
                    outcome = error
                yield outcome
        finally:
            # Answers for clips that are being decoded now go to futures that nobody reads.
            for future in pending:
                future.cancel()

    def _check_usable(self) -> None:
        if self._closed:
            raise RuntimeError("this DecodePool is closed; make a new one")
        if os.getpid() != self._process_id:
            raise RuntimeError("this DecodePool belongs to the parent process; make one in this process")

    def _decode(self, place: "_Place") -> Video:
        header, timestamps, payload = self._ask(place, {})
        return Video(payload.reshape(header["shape"]), timestamps)

    def _ask(self, place: "_Place", wishes: dict[str, Any]) -> tuple[dict[str, Any], np.ndarray, np.ndarray]:
        """The answer of this thread's worker: header, timestamps float64 (T,), bytes uint8 (N,)."""
        for _ in range(_NUM_TRIES):
            worker = self._worker()
            try:
                return worker.ask({"path": place.path, "folder": place.folder, **wishes}, self._timeout_s)
            except _WorkerLost as loss:
                self._drop(worker)
                if not loss.was_killed:
                    raise VideoDecodeError(f"{place.path}: {loss}; remove this clip or replace it") from loss
                lost = loss
        raise DecoderError(
            f"{place.path}: {_NUM_TRIES} decoding processes, one after the other, were killed while they read it "
            f"({lost}); if memory is short, use fewer workers, and run it again"
        ) from lost

    def _worker(self) -> "_Worker":
        """The worker of this thread, which runs."""
        worker: _Worker | None = getattr(self._own, "worker", None)
        if worker is not None and worker.process.poll() is None:
            return worker
        if worker is not None:  # it has died with no clip, so no clip is at fault
            self._drop(worker)
        with self._lock:
            if self._closed:
                raise RuntimeError("this DecodePool was closed while it was in use")
            worker = _Worker()
            self._workers.add(worker)
        try:
            worker.set_up(self._setup)
        except DecoderError:
            self._drop(worker)
            raise
        self._own.worker = worker
        return worker

    def _drop(self, worker: "_Worker") -> None:
        """Forgets a worker of this thread, and closes its pipes."""
        worker.stop()
        self._own.worker = None
        with self._lock:
            self._workers.discard(worker)


class _Place(NamedTuple):
    """A file as it was named, and for a relative path the folder that was current then: a worker has another."""

    path: str
    folder: str


def _place(path: str | os.PathLike[str]) -> _Place:
    return _Place(os.fspath(path), "" if os.path.isabs(path) else os.getcwd())


class _WorkerLost(Exception):
    """Raised when a worker has died or is late; the message says which."""

    def __init__(self, message: str, was_killed: bool = False) -> None:
        super().__init__(message)
        self.was_killed = was_killed


class _Worker:
    """One worker process, used by one thread."""

    is_set_up = False

    def __init__(self) -> None:
        try:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "safe_rlhf_video.video.worker"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=_stderr(),
                bufsize=0,
                env=_environment(),
            )
        except OSError as error:
            raise DecoderError(
                f"a decoding process did not start ({error.strerror}); free memory, processes or open files"
            ) from error
        assert self.process.stdout is not None
        if hasattr(fcntl, "F_SETPIPE_SZ"):  # Linux
            with contextlib.suppress(OSError):  # the system may allow less
                fcntl.fcntl(self.process.stdout, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)

    def set_up(self, setup: dict[str, Any]) -> None:
        try:
            self._send(setup)
            self._receive_header(time.monotonic() + START_TIMEOUT_S)
            self.is_set_up = True
        except (_WorkerLost, TimeoutError) as error:
            reason = str(error) or f"took longer than {START_TIMEOUT_S:g} s"
            raise DecoderError(f"a decoding process did not start: {reason}; its output on stderr says more") from error

    def ask(self, request: dict[str, Any], timeout_s: float) -> tuple[dict[str, Any], np.ndarray, np.ndarray]:
        """Sends a request; raises VideoDecodeError if the clip cannot be read, _WorkerLost if the process is lost."""
        deadline = time.monotonic() + timeout_s
        try:
            self._send(request)
            header = self._receive_header(deadline)
            if "error" in header:
                raise VideoDecodeError(header["error"])
            shape = header.get("shape", (0,))
            timestamps = np.empty(shape[0], dtype=np.float64)
            payload = np.empty(sum(header.get("piece_bytes", (math.prod(shape),))), dtype=np.uint8)
            self._receive_into(timestamps.view(np.uint8).data, deadline)
            self._receive_into(payload.data, deadline)
        except TimeoutError:
            raise _WorkerLost(f"took longer than {timeout_s:g} s") from None
        return header, timestamps, payload

    def stop(self) -> None:
        """Kills the process and frees its pipes."""
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                pipe.close()

    def _send(self, header: dict[str, Any]) -> None:
        assert self.process.stdin is not None
        # Never blocks: the worker has answered all before, so the pipe is empty and larger than any path.
        with contextlib.suppress(BrokenPipeError):  # receiving then finds out how the process ended
            self.process.stdin.write(encode_message(header))

    def _receive_header(self, deadline: float) -> dict[str, Any]:
        length = bytearray(LENGTH.size)
        self._receive_into(memoryview(length), deadline)
        text = bytearray(LENGTH.unpack(length)[0])
        self._receive_into(memoryview(text), deadline)
        header: dict[str, Any] = json.loads(text)
        return header

    def _receive_into(self, buffer: memoryview, deadline: float) -> None:
        assert self.process.stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(self.process.stdout, selectors.EVENT_READ)
            while buffer:
                if not selector.select(max(0.0, deadline - time.monotonic())):
                    raise TimeoutError
                received = os.readv(self.process.stdout.fileno(), [buffer])
                if received == 0:
                    end, was_killed = _describe_end(self.process)
                    raise _WorkerLost(f"the decoder {'was killed' if was_killed else 'crashed'} ({end})", was_killed)
                buffer = buffer[received:]


def _environment() -> dict[str, str]:
    """The environment of a worker: it finds the packages that this process finds, and no secrets.

    It does not look for packages in the working folder.
    """
    # Absolute, because a worker changes its folder. Some programs put a Path there, which Python skips.
    entries = [os.path.abspath(entry) for entry in sys.path if entry and isinstance(entry, str)]
    known = {
        name: value for name, value in os.environ.items() if name in _VARIABLES or name.startswith(_VARIABLE_PREFIXES)
    }
    return known | {"PYTHONPATH": os.pathsep.join(entries), "PYTHONSAFEPATH": "1"}


def _stderr() -> int | None:
    """Where a worker may report: where this process does, or nowhere if its descriptor 2 is closed."""
    try:
        os.fstat(2)
    except OSError:
        return subprocess.DEVNULL
    return None


def _describe_end(process: "subprocess.Popen[bytes]") -> tuple[str, bool]:
    """How a worker has ended, and whether a kill from outside has ended it."""
    # The pipe closes a moment before the exit status is there.
    try:
        code = process.wait(timeout=1.0)
    except subprocess.TimeoutExpired:
        return "it closed its pipe", False
    if code >= 0:
        return f"exit code {code}", False
    with contextlib.suppress(ValueError):
        return f"signal {-code}, {signal.Signals(-code).name}", -code in _KILLS
    return f"signal {-code}", False
