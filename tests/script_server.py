"""Runs scripts in forks of one process that has already imported their libraries, which takes seconds in a launch.

A run is a process with its own arguments, environment, working folder and output. `ScriptServer` is the tests' side;
the rest of the file is the process that it starts. That process reads one JSON object a line: an order starts a run
and is answered by its process id; {"wait": ID} is answered by the exit code of that run, negative for a signal.
"""

from __future__ import annotations

import atexit
import gc
import importlib
import json
import os
import pkgutil
import runpy
import signal
import subprocess
import sys
import tempfile
import threading
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

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
    """The process that forks. It ends with this one."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._process = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=dict(environment),
            start_new_session=True,
        )
        atexit.register(self._end)

    def run(
        self, words: Sequence[str], environment: Mapping[str, str], timeout: float, ranks: int | None, port: int
    ) -> subprocess.CompletedProcess[str]:
        """Run a script with its arguments to its end, in the working folder of this process.

        Args:
            words: The script's path and its arguments.
            environment: All environment variables of the run.
            timeout: Seconds after which the run is killed, which raises `subprocess.TimeoutExpired`.
            ranks: Start as many processes as the deepspeed launcher would; None starts the script alone.
            port: Where the ranks meet.
        """
        with tempfile.TemporaryDirectory() as folder:
            streams = {name: f"{folder}/{name}" for name in ("stdout", "stderr")}
            order = {"words": list(words), "environment": dict(environment), "ranks": ranks, "port": port}
            process_id = self._ask({**order, **streams, "folder": os.getcwd()})
            killed = threading.Event()

            def kill() -> None:
                killed.set()
                os.killpg(process_id, signal.SIGKILL)

            timer = threading.Timer(timeout, kill)
            timer.start()
            code = self._ask({"wait": process_id})
            timer.cancel()
            stdout, stderr = (Path(path).read_text() for path in streams.values())
        if killed.is_set():
            raise subprocess.TimeoutExpired(words, timeout, stdout, stderr)
        return subprocess.CompletedProcess(words, code, stdout, stderr)

    def _end(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()

    def _ask(self, order: Mapping[str, Any]) -> int:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(json.dumps(order), file=self._process.stdin, flush=True)
        answer = self._process.stdout.readline()
        assert answer, f"the script server ended with code {self._process.wait()}"
        return int(answer)


def import_everything() -> None:
    """Import the package and the libraries that it imports only where they are used."""
    import safe_rlhf_video

    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
    for module in pkgutil.walk_packages(safe_rlhf_video.__path__, "safe_rlhf_video."):
        importlib.import_module(module.name)
    for name in LIBRARIES:
        importlib.import_module(name)


def become(order: Mapping[str, Any], answers: int) -> None:
    """Turn this fork of the server into what a launch would have started."""
    os.setsid()
    os.close(answers)
    nothing = os.open(os.devnull, os.O_RDONLY)
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
    for ours, stream in ((nothing, 0), (os.open(order["stdout"], flags), 1), (os.open(order["stderr"], flags), 2)):
        os.dup2(ours, stream)
        os.close(ours)
    os.environ.clear()
    os.environ.update(order["environment"])
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
    sys.argv = list(words)
    sys.path[0] = str(Path(words[0]).resolve().parent)
    runpy.run_path(words[0], run_name="__main__")


def serve() -> None:
    """Read orders to the end of the input; return in forks only, as the run that they are."""
    answers = os.dup(1)
    os.dup2(2, 1)  # what libraries print on import is no answer
    import_everything()
    gc.collect()
    gc.freeze()
    while line := sys.stdin.readline():
        order = json.loads(line)
        if "wait" in order:
            answer = os.waitstatus_to_exitcode(os.waitpid(order["wait"], 0)[1])
        elif not (answer := os.fork()):
            become(order, answers)
            if order["ranks"]:
                return run_ranks(order["words"], order["ranks"], order["port"])
            return run_script(order["words"])
        os.write(answers, f"{answer}\n".encode())
    os._exit(0)


if __name__ == "__main__":
    serve()
