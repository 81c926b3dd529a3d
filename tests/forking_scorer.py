"""A process that has imported all that scripts/score.py needs, and forks a run of it for every line on its input.

A launch takes seconds of imports, a fork none: tests can start and kill many runs, which are processes like any other.
Lines in: {"rank", "world_size", "arguments", "log"} starts a run and is answered by its process id; {"wait"} an id, by
its exit code, negative for a signal.
"""

import json
import os
import sys

from safe_rlhf_video.cli import run_script
from safe_rlhf_video.commands import score


def run(order: dict) -> None:
    log = os.open(order["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for ours, stream in ((nothing, 0), (log, 1), (log, 2)):
        os.dup2(ours, stream)
    places = {"RANK": order["rank"], "WORLD_SIZE": order["world_size"], "LOCAL_RANK": order["rank"]}
    os.environ.update({name: str(value) for name, value in places.items()})
    sys.argv = ["score.py", *order["arguments"]]
    code = 1
    try:
        run_script(score.main)
        code = 0
    except SystemExit as error:
        code = error.code
    finally:
        sys.stdout.flush()
        os._exit(code)


for line in sys.stdin:
    order = json.loads(line)
    if "wait" in order:
        answer = os.waitstatus_to_exitcode(os.waitpid(order["wait"], 0)[1])
    elif not (answer := os.fork()):
        run(order)
    print(answer, flush=True)
