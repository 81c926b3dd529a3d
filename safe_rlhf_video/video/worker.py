"""The child process of `pool.DecodePool`: requests come on stdin, answers go to what was stdout; it ends with stdin.

A message is a JSON header behind its length (4 bytes, little-endian); raw bytes follow where the header says so:

    parent -> child   {"sampling": {...}, "backend": "auto", "timeout_s": 60.0}      once
    child -> parent   {"ready": true}                                               once
    parent -> child   {"path": "..."}                                               per clip
    child -> parent   {"shape": [T, H, W, 3]} + timestamps (8 T bytes) + frames     or {"error": "one line"}

No pickle: whatever a broken clip makes of this process, its answers are numbers and text to the parent.
"""

import json
import os
import signal
import struct
import sys
from collections.abc import Mapping
from typing import Any, BinaryIO

from safe_rlhf_video.errors import VideoDecodeError
from safe_rlhf_video.video.decoding import read_video
from safe_rlhf_video.video.sampling import Sampling, Video

LENGTH = struct.Struct("<I")

# The parent kills a worker that is late. Where the parent was killed meanwhile, the kernel does it, this much later.
ORPHAN_GRACE_S = 5.0


def encode_message(header: Mapping[str, Any]) -> bytes:
    """The bytes of a message that carries nothing but its header; file names of any bytes survive."""
    text = json.dumps(header).encode("ascii")
    return LENGTH.pack(len(text)) + text


def main() -> None:
    requests = sys.stdin.buffer
    answers = _take_over_stdout()
    # Ctrl-C reaches the whole process group; the parent decides what becomes of its workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    setup = _read_message(requests)
    if setup is None:
        return
    sampling = Sampling.from_dict(setup["sampling"])
    answers.write(encode_message({"ready": True}))
    answers.flush()

    while (request := _read_message(requests)) is not None:
        signal.setitimer(signal.ITIMER_REAL, setup["timeout_s"] + ORPHAN_GRACE_S)
        try:
            answer = _encode_video(read_video(request["path"], sampling, setup["backend"]))
        except VideoDecodeError as error:
            answer = [encode_message({"error": str(error)})]
        signal.setitimer(signal.ITIMER_REAL, 0)
        answers.writelines(answer)
        answers.flush()


def _take_over_stdout() -> BinaryIO:
    """Keep the pipe to the parent for answers alone: whatever else prints, C libraries included, goes to stderr."""
    pipe = os.dup(sys.stdout.fileno())
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    return os.fdopen(pipe, "wb")


def _read_message(stream: BinaryIO) -> dict[str, Any] | None:
    """The next header, or None where the parent has closed the pipe or is gone."""
    length = stream.read(LENGTH.size)
    if len(length) < LENGTH.size:
        return None
    text = stream.read(LENGTH.unpack(length)[0])
    header: dict[str, Any] = json.loads(text)
    return header


def _encode_video(video: Video) -> list[bytes]:
    return [encode_message({"shape": video.frames.shape}), video.timestamps.tobytes(), video.frames.tobytes()]


if __name__ == "__main__":
    try:
        main()
    except BrokenPipeError:
        os._exit(1)  # the parent is gone; flushing stdout at a normal exit would only fail again
