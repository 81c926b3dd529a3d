"""Starts decoding processes as forks of one process that has imported the decoders, which takes 0.3 s in a launch.

A test process calls `start_template` once; its environment then tells the address to the scripts that it starts. Each
process whose decode pools shall take forks calls `use_forks`. Between a pool and a fork is nothing but their pipes, as
in a launch; a socket tells the pool the fork's process id and how it ended.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import struct
import subprocess
import sys
from types import SimpleNamespace
from typing import IO, Any

from safe_rlhf_video.video import pool, worker

ADDRESS = "DECODER_TEMPLATE"  # the environment variable with the name of the template's socket
NUMBER = struct.Struct("<i")


def start_template() -> None:
    """Start the process that forks. It ends with this one."""
    name = f"decoders-{os.getpid()}"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"\0{name}")  # in no folder
        listener.listen(64)
        words = [sys.executable, __file__, str(listener.fileno())]
        template = subprocess.Popen(words, stdin=subprocess.PIPE, pass_fds=[listener.fileno()], start_new_session=True)
    os.environ[ADDRESS] = name
    _templates.append(template)


def use_forks() -> None:
    """Let the decode pools of this process take forks, where there is a template."""
    stand_in = SimpleNamespace(**vars(subprocess) | {"Popen": _start})
    pool.subprocess = stand_in  # type: ignore[attr-defined]


def _start(words: list[str], **options: Any) -> ForkedDecoder | subprocess.Popen[bytes]:
    return ForkedDecoder() if ADDRESS in os.environ else subprocess.Popen(words, **options)


_templates: list[subprocess.Popen[bytes]] = []  # their ends of the pipes close with this process


class ForkedDecoder:
    """What a pool uses of a `subprocess.Popen`."""

    def __init__(self) -> None:
        requests, own_requests = os.pipe()
        own_answers, answers = os.pipe()
        self._template = socket.socket(socket.AF_UNIX)
        self._template.connect(f"\0{os.environ[ADDRESS]}")
        socket.send_fds(self._template, [os.fsencode(os.getcwd())], [requests, answers, 2])
        os.close(requests)
        os.close(answers)
        self.pid: int = NUMBER.unpack(self._template.recv(NUMBER.size))[0]
        self.stdin: IO[bytes] = os.fdopen(own_requests, "wb", buffering=0)
        self.stdout: IO[bytes] = os.fdopen(own_answers, "rb", buffering=0)

    def poll(self) -> int | None:
        """The exit code, negative for a signal; None while it runs."""
        try:
            return self.wait(0)
        except subprocess.TimeoutExpired:
            return None

    def wait(self, timeout: float | None = None) -> int:
        if not select.select([self._template], [], [], timeout)[0]:
            raise subprocess.TimeoutExpired("decoder", timeout or 0)
        code: int = NUMBER.unpack(self._template.recv(NUMBER.size, socket.MSG_PEEK))[0]  # other threads ask too
        return code

    def kill(self) -> None:
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):  # it has ended in this moment
                os.kill(self.pid, signal.SIGKILL)


def serve(listener: socket.socket) -> None:
    """Fork for each that connects; return at the end of stdin, and in forks only to become a decoder."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for those that stand by
    while sys.stdin not in select.select([listener, sys.stdin], [], [])[0]:
        asking, _ = listener.accept()
        folder, streams, _, _ = socket.recv_fds(asking, 4096, 3)
        if not os.fork():
            listener.close()
            return stand_by(asking, folder, streams)
        asking.close()
        for stream in streams:
            os.close(stream)


def stand_by(asking: socket.socket, folder: bytes, streams: list[int]) -> None:
    """Fork a decoder, and tell its pool how it ends; return as the decoder."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    decoder = os.fork()
    if decoder:
        for stream in (0, *streams):  # else they would stay open when it ends
            os.close(stream)
        asking.sendall(NUMBER.pack(decoder))
        _, status = os.waitpid(decoder, 0)
        try:
            asking.sendall(NUMBER.pack(os.waitstatus_to_exitcode(status)))
        finally:
            os._exit(0)
    asking.close()
    for place, stream in enumerate(streams):
        os.dup2(stream, place)
        os.close(stream)
    os.chdir(folder)
    try:
        worker.main()
    except BrokenPipeError:
        os._exit(1)


if __name__ == "__main__":
    serve(socket.socket(fileno=int(sys.argv[1])))
