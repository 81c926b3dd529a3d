"""Runs the scripts: reads their arguments, prints errors as one line."""

from __future__ import annotations

import argparse
import os
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any, NoReturn

from safe_rlhf_video.errors import ConfigError, DeviceMemoryError, SafeRLHFVideoError
from safe_rlhf_video.wording import did_you_mean

# Seconds that a failing rank waits, before the ranks have met, for rank 0 to report the same error.
OTHER_RANKS_S = 10.0


class Parser(argparse.ArgumentParser):
    """An argument parser that reports a mistake in one line, and takes options by their whole names, each once."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"formatter_class": argparse.RawDescriptionHelpFormatter, "allow_abbrev": False, **options})

    def error(self, message: str) -> NoReturn:
        """Raises a ConfigError, which `run_script` prints, instead of the usage and exit code 2."""
        unknown, _, words = message.partition(": ")
        if unknown == "unrecognized arguments":
            raise ConfigError(describe_unknown(words.split()[0], self._option_string_actions))
        raise ConfigError(f"{message}; --help lists the arguments")

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As argparse does, but an option that is given twice is an error: the first one would be lost."""
        words = sys.argv[1:] if args is None else list(args)
        refuse_repeated(words, self._option_string_actions)
        return super().parse_known_args(words, namespace)

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


def describe_unknown(word: str, known: Iterable[str]) -> str:
    """Says that there is no such option, and which one may be meant."""
    name = word.partition("=")[0]
    if not name.startswith("-"):
        return f"{name}: no option takes it; --help lists the arguments"
    if name == "--local_rank":
        return "this script is one process; run it with python, without a launcher"
    return f"there is no option {name}; {did_you_mean(name, known) or '--help lists the arguments'}"


def refuse_repeated(words: Sequence[str], known: Collection[str]) -> None:
    """Raises a ConfigError where an option is given twice."""
    given = [name for word in words if (name := word.partition("=")[0]) in known and name.startswith("--")]
    for name, count in Counter(given).items():
        if count > 1:
            raise ConfigError(f"{name}: given {count} times; give it once, several values after one another")


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
