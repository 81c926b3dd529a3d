"""Runs scripts in forks of one process that has already imported their libraries, which takes seconds in a launch.

A run is a process with its own arguments, environment, working folder and output. `ScriptServer` is the tests' side;
the rest of the file is the process that forks, which all workers of a test run share: the first to ask starts it, and
it ends with the last connection. It reads one JSON object a line: an order starts a run and is answered by its process
id; {"poll": ID} is answered by the exit code of that run, or null while it runs.
"""

from __future__ import annotations

import errno
import gc
import importlib
import json
import os
import pkgutil
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import forked_decoders

# Imported by the libraries only where they are used, which would be in every run.
LIBRARIES = (
    "jsonargparse",
    "jsonargparse.typing",
    "torch.utils.data",
    "transformers.models.qwen3_vl.modeling_qwen3_vl",
    "transformers.models.auto.tokenization_auto",
    "peft",
    "deepspeed",
)
# Environment variables that are read on import, by their first letters: the server's apply to all its runs.
READ_ON_IMPORT = ("PYTHON", "LC_", "LANG", "OMP_", "HF_", "TRANSFORMERS_", "TOKENIZERS_", "LD_")


class ScriptServer:
    """A connection to the process that forks."""

    def __init__(self, name: str, environment: Mapping[str, str]) -> None:
        """Connect to the server of a name, in no folder; start it with an environment where nobody has."""
        self._connection = socket.socket(socket.AF_UNIX)
        while True:
            _start_server(f"\0{name}", environment)
            try:
                self._connection.connect(f"\0{name}")
                return
            except ConnectionRefusedError:  # another worker is about to start it, or it has just ended
                time.sleep(0.05)

    def start(
        self, words: Sequence[str], environment: Mapping[str, str], ranks: int | None, port: int, output: Path
    ) -> ScriptRun:
        """Start a script in the working folder of this process.

        Args:
            words: The script's path and its arguments.
            environment: All environment variables of the run.
            ranks: Start as many processes as the deepspeed launcher would; None starts the script alone.
            port: Where the ranks meet.
            output: A folder for the files stdout and stderr.
        """
        order = {"words": list(words), "environment": dict(environment), "ranks": ranks, "port": port}
        return ScriptRun(self, self.ask({**order, "output": str(output), "folder": os.getcwd()}))

    def ask(self, order: Mapping[str, Any]) -> Any:
        """Send an order and return its answer."""
        self._connection.sendall(f"{json.dumps(order)}\n".encode())
        answer = read_line(self._connection)
        assert answer, "the script server has ended"
        return json.loads(answer)


def _start_server(address: str, environment: Mapping[str, str]) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        try:
            listener.bind(address)
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
        else:
            listener.listen(64)
            words = [sys.executable, __file__, str(listener.fileno())]
            subprocess.Popen(
                words,
                stdin=subprocess.DEVNULL,
                stdout=2,  # what libraries print on import
                pass_fds=[listener.fileno()],
                env=dict(environment),
                start_new_session=True,
            )


def read_line(connection: socket.socket) -> bytes:
    """The next line, to which the other side awaits an answer; empty where the other side has ended."""
    line = b""
    while not line.endswith(b"\n"):
        part = connection.recv(1 << 16)
        if not part:
            return b""
        line += part
    return line


@dataclass
class ScriptRun:
    """A run of a script, which leads a process group of its own."""

    server: ScriptServer
    process_id: int
    code: int | None = None

    def poll(self) -> int | None:
        """The exit code, negative for a signal; None while it runs."""
        if self.code is None:
            self.code = self.server.ask({"poll": self.process_id})
        return self.code

    def wait(self, timeout: float) -> int:
        """The exit code once it has ended; `timeout` seconds later it is killed and the test fails."""
        deadline = time.monotonic() + timeout
        while self.poll() is None:
            if time.monotonic() > deadline:
                self.kill()
                raise TimeoutError(f"killed after {timeout} s")
            time.sleep(0.01)
        assert self.code is not None
        return self.code

    def send_signal(self, sent: int) -> None:
        os.kill(self.process_id, sent)

    def kill(self) -> None:
        """Kill the whole process group."""
        os.killpg(self.process_id, signal.SIGKILL)
        self.wait(60)


def import_everything() -> None:
    """Import the package and the libraries that it imports only where they are used."""
    import safe_rlhf_video

    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
    for module in pkgutil.walk_packages(safe_rlhf_video.__path__, "safe_rlhf_video."):
        importlib.import_module(module.name)
    for name in LIBRARIES:
        importlib.import_module(name)


def become(order: Mapping[str, Any]) -> None:
    """Turn this fork of the server into what a launch would have started."""
    os.setsid()
    nothing = os.open(os.devnull, os.O_RDONLY)
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
    stdout, stderr = (os.open(f"{order['output']}/{name}", flags) for name in ("stdout", "stderr"))
    for ours, stream in ((nothing, 0), (stdout, 1), (stderr, 2)):
        os.dup2(ours, stream)
        os.close(ours)
    os.environ.clear()
    os.environ.update(order["environment"])
    tempfile.tempdir = None  # TMPDIR may be another
    os.chdir(order["folder"])
    signal.signal(signal.SIGINT, signal.default_int_handler)


def run_ranks(words: Sequence[str], ranks: int, port: int) -> None:
    """Do what deepspeed's launcher does: start a process a rank, and end all of them when one fails."""
    size = str(ranks)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), WORLD_SIZE=size, LOCAL_SIZE=size)
    running = set()
    for rank in range(ranks):
        process_id = os.fork()
        if process_id:
            running.add(process_id)
        else:
            os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank))
            return run_script([words[0], f"--local_rank={rank}", *words[1:]])
    while running:
        ended, status = os.wait()
        running.discard(ended)
        if status:
            for process_id in running:
                os.kill(process_id, signal.SIGTERM)
            os._exit(abs(os.waitstatus_to_exitcode(status)))


def run_script(words: Sequence[str]) -> None:
    import numpy.random
    import torch

    # As in a new interpreter, each run draws its own: what a run forgets to seed must not come out equal in two runs.
    numpy.random.seed()
    torch.default_generator.seed()
    sys.argv = list(words)
    sys.path[0] = str(Path(words[0]).resolve().parent)
    runpy.run_path(words[0], run_name="__main__")


def serve(listener: socket.socket) -> None:
    """Answer orders to the end of the last connection; return in forks only, as the run that they are."""
    import_everything()
    forked_decoders.use_forks()
    gc.collect()
    gc.freeze()
    connections = [listener.accept()[0]]
    while connections:
        for ready in select.select([listener, *connections], [], [])[0]:
            if ready is listener:
                connections.append(listener.accept()[0])
            elif not (line := read_line(ready)):
                connections.remove(ready)
                ready.close()
            else:
                order = json.loads(line)
                if "poll" in order:
                    ended, status = os.waitpid(order["poll"], os.WNOHANG)
                    answer = os.waitstatus_to_exitcode(status) if ended else None
                elif not (answer := os.fork()):
                    for one in (listener, *connections):
                        one.close()
                    become(order)
                    if order["ranks"]:
                        return run_ranks(order["words"], order["ranks"], order["port"])
                    return run_script(order["words"])
                ready.sendall(f"{json.dumps(answer)}\n".encode())
    os._exit(0)


if __name__ == "__main__":
    serve(socket.socket(fileno=int(sys.argv[1])))
