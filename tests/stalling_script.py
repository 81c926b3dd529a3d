"""Runs the script in $STALLED_SCRIPT, but stands still in the middle of writing, for test_resume.py to kill it there.

$STALL_AT is "save" (the second checkpoint is half written) or "publish" (<run>/model is just gone); $STALL_MARKER is
the file that tells when.
"""

import os
import runpy
import time
from pathlib import Path
from typing import Any

from safe_rlhf_video.training import state

save_tensors, replace = state.save_tensors, os.replace
saves = 0


def stall() -> None:
    Path(os.environ["STALL_MARKER"]).touch()
    time.sleep(600)


def save_tensors_and_stall(*arguments: Any) -> None:
    global saves
    saves += 1
    save_tensors(*arguments)
    if saves == 2:
        stall()


def replace_and_stall(source: Any, target: Any) -> None:
    replace(source, target)
    if str(target).endswith(".model.outgoing"):
        stall()


if os.environ["STALL_AT"] == "save":
    state.save_tensors = save_tensors_and_stall
else:
    os.replace = replace_and_stall  # type: ignore[assignment]
runpy.run_path(os.environ["STALLED_SCRIPT"], run_name="__main__")
