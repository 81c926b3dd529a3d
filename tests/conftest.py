"""What tests share: a small synthetic world, a tiny trained run of each head, and how scripts are launched.

World and runs take seconds: they are made once for all workers, and only when a test asks for them.
"""

from __future__ import annotations

import fcntl
import gzip
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any

import forked_decoders
import pytest
import yaml
from script_server import READ_ON_IMPORT, ScriptRun, ScriptServer

# Before torch is imported: several threads a process on few cores stall each other.
os.environ["OMP_NUM_THREADS"] = "1"
ROOT = Path(__file__).resolve().parents[1]

# A shell that runs the tests in the background has them ignore Ctrl-C, and with them all scripts that they interrupt.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
Record = dict[str, Any]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def command(script: str | Path, *arguments: object, ranks: int | None = None) -> list[str]:
    """The command line of a script; with `ranks` through the deepspeed launcher, on a port of its own."""
    words = [str(ROOT / script), *map(str, arguments)]
    if ranks is None:
        return [sys.executable, *words]
    launcher = str(Path(sys.executable).with_name("deepspeed"))
    return [launcher, "--num_gpus", str(ranks), "--master_port", str(free_port()), *words]


def environment(**extra: str) -> dict[str, str]:
    """What scripts are run with: nothing from the network, and `extra`."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    fixed = {"WANDB_MODE": "offline", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    # Where pytest itself runs under a launcher, its ranks are not those of the scripts.
    inherited = {name: value for name, value in os.environ.items() if name not in ("RANK", "LOCAL_RANK", "WORLD_SIZE")}
    return {**inherited, "PATH": path, **fixed, **extra}


@cache
def script_server() -> ScriptServer:
    name = f"scripts-{os.environ.get('PYTEST_XDIST_TESTRUNUID', os.getpid())}"
    return ScriptServer(name, environment(HF_HUB_DISABLE_PROGRESS_BARS="1"))


def start(script: str | Path, *arguments: object, output: Path, ranks: int | None = None, **extra: str) -> ScriptRun:
    """Start a fork of the script server; `output` is a folder for what it prints, `extra` environment variables."""
    assert not any(name.startswith(READ_ON_IMPORT) for name in extra), extra
    words = [str(ROOT / script), *map(str, arguments)]
    return script_server().start(words, environment(**extra), ranks, free_port() if ranks else 0, output)


def launch(
    script: str | Path,
    *arguments: object,
    ranks: int | None = None,
    check: bool = True,
    timeout: float = 500,
    as_users_do: bool = False,
    **extra: str,
) -> subprocess.CompletedProcess[str]:
    """Run a script to its end, as a process of its own.

    Args:
        script: Its path, absolute or in the repository.
        arguments: Its arguments.
        ranks: The number of its processes, as the deepspeed launcher starts them; None starts no more than the script.
        check: Fail the test with what the script wrote if its exit code is not 0.
        timeout: Seconds until the script is killed.
        as_users_do: Start a new interpreter, or the deepspeed launcher, which takes seconds of imports; a fork of the
            script server does otherwise.
        extra: Environment variables.
    """
    words = command(script, *arguments, ranks=ranks)
    if as_users_do or any(name.startswith(READ_ON_IMPORT) for name in extra):
        done = subprocess.run(
            words, capture_output=True, text=True, env=environment(**extra), timeout=timeout, check=False
        )
    else:
        with tempfile.TemporaryDirectory() as output:
            code = start(script, *arguments, output=Path(output), ranks=ranks, **extra).wait(timeout)
            stdout, stderr = (Path(output, name).read_text() for name in ("stdout", "stderr"))
        done = subprocess.CompletedProcess(words, code, stdout, stderr)
    if check and done.returncode:
        pytest.fail(f"{script} exited with {done.returncode}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}")
    return done


def write_training_config(path: Path, world: Path, /, **sections: Any) -> Path:
    """A YAML file that trains the embedded backbone on `world`, a folder of make_synthetic.py, without W&B."""
    config = {
        "out": str(path.with_suffix("")),
        "data": {"path": str(world), "config_filename": "config-train.json.gz", "validation_fraction": 0.2},
        "sampling": {"num_frames": 4, "min_pixels": 1024, "max_pixels": 1024, "size_multiple": 8},
        "optimization": {"epochs": 1, "prompts_per_step": 4, "learning_rate": 1e-3},
        "checkpoint": {"every_steps": 2},
        "tracking": {"log_every": 1, "wandb": "disabled"},
    }
    for name, value in sections.items():
        config[name] = {**config.get(name, {}), **value} if isinstance(value, dict) else value
    path.write_text(yaml.safe_dump(config, sort_keys=False))
    return path


def read_records(world: Path, split: str = "train") -> list[Record]:
    """The records of a world's config, to be changed and written elsewhere."""
    return json.loads(gzip.decompress((world / f"config-{split}.json.gz").read_bytes()))


def read_rows(run: Path) -> list[dict[str, Any]]:
    """The rows of a run's metrics.jsonl."""
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="session", autouse=True)
def fast_decoders() -> None:
    """Decoding processes of tests, and of scripts that `launch` starts, are forks of one process."""
    forked_decoders.start_template()
    forked_decoders.use_forks()


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Deals the slow tests out to the workers, each before fast ones, so that no worker ends alone with long tests.

    pytest-xdist gives each worker an equal run of the items; later, one that has nothing left takes over another's.
    """
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", 1))
    slow = [item for item in items if item.get_closest_marker("slow")]
    fast = iter([item for item in items if not item.get_closest_marker("slow")])
    size = len(items) // workers
    shares = [slow[number::workers] for number in range(workers)]
    items[:] = [item for share in shares for item in (*share, *islice(fast, max(0, size - len(share))))] + [*fast]


MakeOnce = Callable[[str, Callable[[Path], object]], Path]


@pytest.fixture(scope="session")
def make_once(tmp_path_factory: pytest.TempPathFactory) -> MakeOnce:
    """Give a folder by its name, which a function has filled; the workers of pytest-xdist share it."""
    base = tmp_path_factory.getbasetemp()
    root = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "shared"
    root.mkdir(exist_ok=True)

    def make(name: str, fill: Callable[[Path], object]) -> Path:
        folder, is_filled = root / name, root / f"{name}.filled"
        with (root / f"{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not is_filled.exists():
                shutil.rmtree(folder, ignore_errors=True)
                folder.mkdir()
                fill(folder)
                is_filled.touch()
        return folder

    return make


@pytest.fixture(scope="session")
def world(make_once: MakeOnce) -> Path:
    """A folder with 60 training and 20 test comparisons in SafeSora's format, with their clips; do not change it."""
    sizes = ("--num_pairs", 60, "--num_test_pairs", 20, "--seed", 0)
    return make_once("world", lambda folder: launch("scripts/make_synthetic.py", "--out", folder, *sizes))


def _train(head: str, world: Path, make_once: MakeOnce) -> Path:
    def train(folder: Path) -> None:
        config = write_training_config(folder / f"{head}.yaml", world, tracking={"wandb": "auto"})
        launch(f"scripts/train_{head}.py", "--config", config, ranks=1)

    return make_once(f"{head}_run", train) / head


@pytest.fixture(scope="session")
def reward_run(world: Path, make_once: MakeOnce) -> Path:
    """The run folder of a reward trained for a few steps; its model folder is <run>/model. Do not change it."""
    return _train("reward", world, make_once)


@pytest.fixture(scope="session")
def cost_run(world: Path, make_once: MakeOnce) -> Path:
    """The run folder of a cost trained for a few steps; its model folder is <run>/model. Do not change it."""
    return _train("cost", world, make_once)


@pytest.fixture
def edited_world(world: Path, tmp_path: Path) -> Callable[[Callable[[list[Record]], Any]], Path]:
    """Make a folder with the world's clips and its training records as a function changes them in place."""

    def edit(change: Callable[[list[Record]], Any]) -> Path:
        folder = tmp_path / "edited"
        folder.mkdir()
        (folder / "videos").symlink_to(world / "videos")
        records = read_records(world)
        change(records)
        (folder / "config-train.json.gz").write_bytes(gzip.compress(json.dumps(records).encode()))
        return folder

    return edit
