"""Runs the child process of `pool.DecodePool`: requests come on stdin, answers go to the former stdout.

A message is the length of its header (4 bytes, little-endian), the header in JSON, and raw bytes if it says so:

    parent -> child   {"sampling": {...}, "backend": "pyav", "timeout_s": 60.0, "memory_bytes": ...,
                       "max_seconds": 60.0 or null, "max_pixels": ...}                                    once
    child -> parent   {"ready": true}                                                                     once
    parent -> child   {"path": "...", "folder": "..."}                                                    per clip
    child -> parent   {"shape": [T, H, W, 3]} + timestamps (8 T bytes) + frames     or {"error": "one line"}

A relative path starts from "folder", which is empty with an absolute one. A request for the frame store has two more
fields; its answer ends with the pieces of `codec.encode_frames`:

    parent -> child   {"path": "...", "folder": "...", "codec": {...}, "known_sha256": "..." or null}
    child -> parent   {"shape": [...], "sha256": "...", "piece_bytes": [...]} + timestamps + pieces
                      or {"unchanged": true}, for a file that has the known hash, or {"error": "one line"}

No pickle: even if a broken clip takes over this process, its answers are only numbers and text to the parent.
"""

import contextlib
import gc
import hashlib
import importlib
import json
import os
import resource
import signal
import struct
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

from safe_rlhf_video.errors import VideoDecodeError
from safe_rlhf_video.video.codec import Codec, encode_frames
from safe_rlhf_video.video.decoding import check_file, read_video
from safe_rlhf_video.video.sampling import Sampling, Video

LENGTH = struct.Struct("<I")

# The parent kills a late worker. If the parent has been killed, the kernel does it, this many seconds later.
ORPHAN_GRACE_S = 5.0


def encode_message(header: Mapping[str, Any]) -> bytes:
    """The bytes of a message that is only a header; file names of any bytes survive."""
    text = json.dumps(header).encode("ascii")
    return LENGTH.pack(len(text)) + text


def main() -> None:
    requests = sys.stdin.buffer
    answers = _take_over_stdout()
    # Ctrl-C, and often SIGTERM, reach all processes; the parent decides when its workers end.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)

    setup = _read_message(requests)
    if setup is None:
        return
    sampling = Sampling.from_dict(setup["sampling"])
    if setup["backend"] == "decord":
        importlib.import_module("decord")  # before the limits
    _limit_memory(setup["memory_bytes"])
    _limit_files()
    answers.write(encode_message({"ready": True}))
    answers.flush()

    while (request := _read_message(requests)) is not None:
        signal.setitimer(signal.ITIMER_REAL, setup["timeout_s"] + ORPHAN_GRACE_S)
        is_good = True
        try:
            answer = _answer(request, sampling, setup)
        except VideoDecodeError as error:
            answer = [encode_message({"error": str(error)})]
            is_good = False
        except MemoryError:
            limit = f"more than {setup['memory_bytes'] / 1e9:.3g} GB of memory"
            answer = [encode_message({"error": f"{request['path']}: takes {limit} to decode; write it anew, smaller"})]
            is_good = False
        if not is_good:
            gc.collect()  # a file that a library has left open counts against the next clip
        signal.setitimer(signal.ITIMER_REAL, 0)
        answers.writelines(answer)
        answers.flush()


def _take_over_stdout() -> BinaryIO:
    """Keeps the pipe to the parent for answers alone: all other output, of C libraries too, goes to stderr."""
    pipe = os.dup(sys.stdout.fileno())
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    return os.fdopen(pipe, "wb")


def _read_message(stream: BinaryIO) -> dict[str, Any] | None:
    """The next header, or None if the parent has closed the pipe or ended."""
    length = stream.read(LENGTH.size)
    if len(length) < LENGTH.size:
        return None
    text = stream.read(LENGTH.unpack(length)[0])
    header: dict[str, Any] = json.loads(text)
    return header


def _answer(request: dict[str, Any], sampling: Sampling, setup: dict[str, Any]) -> list[bytes | memoryview]:
    _enter(request)
    if "codec" not in request:
        return _encode_video(_read(request, sampling, setup))
    path = Path(request["path"])
    try:
        check_file(path)
        with path.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    except VideoDecodeError as error:
        raise VideoDecodeError(f"{path}: {error}") from error
    except OSError as error:
        raise VideoDecodeError(f"{path}: cannot be read ({error.strerror}); check the file and its disk") from error
    if sha256 == request["known_sha256"]:
        return [encode_message({"unchanged": True})]
    video = _read(request, sampling, setup)
    pieces = encode_frames(video.frames, Codec.from_dict(request["codec"]))
    header = {"shape": video.frames.shape, "sha256": sha256, "piece_bytes": [len(piece) for piece in pieces]}
    return [encode_message(header), video.timestamps.tobytes(), *pieces]


def _read(request: dict[str, Any], sampling: Sampling, setup: dict[str, Any]) -> Video:
    return read_video(request["path"], sampling, setup["backend"], setup["max_seconds"], setup["max_pixels"])


def _enter(request: dict[str, Any]) -> None:
    """Makes the folder that a relative path starts from the current one."""
    try:
        if request["folder"]:
            os.chdir(request["folder"])
    except OSError as error:
        raise VideoDecodeError(
            f"{request['path']}: the folder {request['folder']}, where it is looked for, cannot be entered "
            f"({error.strerror}); give an absolute path"
        ) from error


def _encode_video(video: Video) -> list[bytes | memoryview]:
    (frames,) = encode_frames(video.frames, Codec("raw"))
    return [encode_message({"shape": video.frames.shape}), video.timestamps.tobytes(), frames]


def _limit_memory(num_bytes: int) -> None:
    """Limits this process to `num_bytes` more than it has: a small file can ask for any amount."""
    # If the system has no such limit, or a lower one, decoding goes on without this one.
    with contextlib.suppress(OSError, ValueError):
        num_pages = int(Path("/proc/self/statm").read_text().split()[5])  # data and stack
        limit = num_pages * resource.getpagesize() + num_bytes
        resource.setrlimit(resource.RLIMIT_DATA, (limit, resource.getrlimit(resource.RLIMIT_DATA)[1]))


def _limit_files() -> None:
    """Lets this process open a clip, twice as decord needs it, and then no other file and no connection."""
    lowest_free = os.open(os.devnull, os.O_RDONLY)
    os.close(lowest_free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest_free + 2, lowest_free + 2))


if __name__ == "__main__":
    try:
        main()
    except BrokenPipeError:
        os._exit(1)  # the parent is gone; flushing stdout at a normal exit would only fail again
