"""What every script shares: typed configurations from YAML and the command line, one-line errors, exit code 1."""

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

# How long a rank that fails before the ranks have met waits for rank 0 to say the same, and its launcher to end it.
OTHER_RANKS_S = 10.0


class Parser(argparse.ArgumentParser):
    """An argument parser whose complaint is one line, as that of any other mistake."""

    def error(self, message: str) -> NoReturn:
        """Raise what `run_script` prints, instead of the usage and exit code 2."""
        raise ConfigError(f"{message}; --help lists the arguments")

    def add_clip_source(self) -> None:
        """Where the file of --data and its clips lie: the arguments of `evaluation.clips.load_labelled_clips`."""
        self.add_argument("--config_filename", default="config.json", help="the file's name, where --data is a folder")
        self.add_argument("--video_dir", help="where the clips lie, if not where the config says")
        self.add_argument(
            "--frame_store", metavar="DIR", help="read the clips that scripts/prepare_videos.py put there"
        )
        self.add_argument(
            "--unreadable",
            choices=("refuse", "drop"),
            default="refuse",
            help="what becomes of comparisons with a clip in the frame store's quarantine",
        )


def parse_config(config_type: type[Config], arguments: Sequence[str], description: str) -> Config:
    """Read `--config FILE.yaml` and `--section.field value` overrides into a dataclass.

    Raises:
        ConfigError: an unknown key, a value of another type, or a missing file.
    """
    from jsonargparse import ArgumentError, ArgumentParser

    parser = ArgumentParser(description=description, exit_on_error=False, allow_abbrev=False)
    parser.add_argument("--config", action="config", help="a YAML file; later arguments override it")
    parser.add_class_arguments(config_type)
    # The deepspeed launcher passes it to every script; the environment says the same.
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
    """Run a script's main; a user's mistake prints one line and exits with code 1, Ctrl-C with 130."""
    # What is left on standard error is for the user: no libraries' progress bars and deprecations.
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
    # All ranks meet the same error, or share it (training.distributed.together): one of them says so.
    is_first = os.environ.get("RANK", "0") == "0"
    try:
        main()
    except SafeRLHFVideoError as error:
        sys.stdout.flush()
        rank = "" if is_first else f"rank {os.environ['RANK']}: "
        if is_first or isinstance(error, DeviceMemoryError) or _fails_alone():
            print(f"error: {rank}{' '.join(str(error).split())}", file=sys.stderr, flush=True)
        # At once: threads and libraries would keep the exit waiting, the other ranks in turn for this one.
        os._exit(1)
    except KeyboardInterrupt:
        sys.stdout.flush()
        if is_first:
            print("interrupted; run the same command again to go on", file=sys.stderr, flush=True)
        os._exit(130)


def _fails_alone() -> bool:
    """Whether a rank other than 0 has an error of its own, which nobody would tell if it did not.

    Once the ranks have met they share their errors. Before, nothing but time tells: rank 0 comes to the same mistake
    about now and the launcher then ends all ranks, this one as it waits; or rank 0 waits in vain for the others.
    """
    torch = sys.modules.get("torch")
    if torch is not None and torch.distributed.is_initialized():
        return False
    time.sleep(OTHER_RANKS_S)
    return True
