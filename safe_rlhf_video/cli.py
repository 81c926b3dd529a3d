"""Runs the scripts: reads typed configurations from YAML and the command line, prints errors as one line."""

from __future__ import annotations

import argparse
import os
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NoReturn, TypeVar

from safe_rlhf_video.errors import ConfigError, DeviceMemoryError, SafeRLHFVideoError

Config = TypeVar("Config")

# Seconds that a failing rank waits, before the ranks have met, for rank 0 to report the same error.
OTHER_RANKS_S = 10.0


class Parser(argparse.ArgumentParser):
    """An argument parser that reports a mistake in one line."""

    def error(self, message: str) -> NoReturn:
        """Raises a ConfigError, which `run_script` prints, instead of the usage and exit code 2."""
        raise ConfigError(f"{message}; --help lists the arguments")

    def add_clip_source(self) -> None:
        """Adds the arguments that find the file of --data and its clips, for `load_labelled_clips`."""
        self.add_argument("--config_filename", default="config.json", help="the file's name, where --data is a folder")
        self.add_argument("--video_dir", help="the folder of the clips, if not where the config says")
        self.add_argument(
            "--frame_store", metavar="DIR", help="read the clips from this store of scripts/prepare_videos.py"
        )
        self.add_argument(
            "--unreadable",
            choices=("refuse", "drop"),
            default="refuse",
            help="what to do with comparisons that have a clip in the frame store's quarantine",
        )


def parse_config(config_type: type[Config], arguments: Sequence[str], description: str) -> Config:
    """Reads `--config FILE.yaml` and `--section.field value` overrides into a dataclass.

    Raises:
        ConfigError: an unknown key, a value of another type, or a missing file.
    """
    from jsonargparse import ArgumentError, ArgumentParser

    parser = ArgumentParser(description=description, exit_on_error=False, allow_abbrev=False)
    parser.add_argument("--config", action="config", help="a YAML file; later arguments override it")
    parser.add_class_arguments(config_type)
    # The deepspeed launcher passes --local_rank to every script; the environment has it too.
    own = [argument for argument in arguments if not argument.startswith("--local_rank")]
    try:
        parsed = parser.parse_args(own)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            instantiate = getattr(parser, "instantiate", None) or parser.instantiate_classes
            values = instantiate(parsed).as_dict()
    except ArgumentError as error:
        raise ConfigError(" ".join(str(error).split())) from error
    values.pop("config", None)
    return config_type(**values)


def run_script(main: Callable[[], Any]) -> None:
    """Runs a script's main; a user's mistake prints one line and exits with code 1, Ctrl-C exits with 130."""
    # Standard error is for the user: no progress bars and deprecations of libraries.
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
    # All ranks meet the same error, or share it (training.distributed.together): one of them prints it.
    is_first = os.environ.get("RANK", "0") == "0"
    try:
        main()
    except SafeRLHFVideoError as error:
        sys.stdout.flush()
        rank = "" if is_first else f"rank {os.environ['RANK']}: "
        if is_first or isinstance(error, DeviceMemoryError) or _fails_alone():
            print(f"error: {rank}{' '.join(str(error).split())}", file=sys.stderr, flush=True)
        # At once: threads and libraries would delay the exit, and the other ranks would wait for this one.
        os._exit(1)
    except KeyboardInterrupt:
        sys.stdout.flush()
        if is_first:
            print("interrupted; run the same command again to go on", file=sys.stderr, flush=True)
        os._exit(130)


def _fails_alone() -> bool:
    """Whether a rank other than 0 has an error that no other rank will print.

    Once the ranks have met, they share their errors. Before, only time can show it: either rank 0 meets the same error
    about now and the launcher ends all ranks while this one waits, or rank 0 waits for this one in vain.
    """
    torch = sys.modules.get("torch")
    if torch is not None and torch.distributed.is_initialized():
        return False
    time.sleep(OTHER_RANKS_S)
    return True
