"""Runs the scripts: reads their arguments, prints errors as one line."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any, NoReturn

from safe_rlhf_video.errors import ConfigError, DeviceMemoryError, SafeRLHFVideoError
from safe_rlhf_video.wording import did_you_mean

# A variable that a launcher sets -> its name.
LAUNCHERS = {"CROSS_RANK": "deepspeed", "TORCHELASTIC_RUN_ID": "torchrun"}

# Seconds that a failing rank waits, before the ranks have met, for rank 0 to report the same error.
OTHER_RANKS_S = 10.0


class Parser(argparse.ArgumentParser):
    """An argument parser that reports a mistake in one line, and takes options by their whole names, each once."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"formatter_class": argparse.RawDescriptionHelpFormatter, "allow_abbrev": False, **options})
        self._given: frozenset[str] = frozenset()

    def error(self, message: str) -> NoReturn:
        """Raises a ConfigError, which `run_script` prints, instead of the usage and exit code 2."""
        unknown, _, words = message.partition(": ")
        if unknown == "unrecognized arguments":
            raise ConfigError(describe_unknown(words.partition(" ")[0], self.options()))
        raise ConfigError(f"{message}; --help lists the arguments")

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As argparse does, but an option that is given twice is an error: the first one would be lost."""
        words = sys.argv[1:] if args is None else list(args)
        self._given = refuse_repeated(words, self._option_string_actions)
        return super().parse_known_args(words, namespace)

    def options(self) -> set[str]:
        """Returns the names of all options, those of subcommands too."""
        found = set(self._option_string_actions)
        for action in self._actions:
            if isinstance(action, argparse._SubParsersAction):
                found.update(*(parser.options() for parser in action.choices.values()))
        return found

    def refuse_unused(self, *options: str, because: str) -> None:
        """Raises a ConfigError if one of these options was given: it would have no effect."""
        for option in options:
            if option in self._given:
                raise ConfigError(f"{option}: has no effect, because {because}; leave it out")


def describe_unknown(word: str, known: Iterable[str]) -> str:
    """Says that there is no such option, and which one may be meant."""
    name = word.partition("=")[0]
    if not name.startswith("-"):
        return f"{name or repr(name)}: no option takes it; --help lists the arguments"
    if name == "--local_rank":
        return "this script is one process; run it with python, without a launcher"
    return f"there is no option {name}; {did_you_mean(name, known) or '--help lists the arguments'}"


def refuse_repeated(words: Sequence[str], known: Collection[str]) -> frozenset[str]:
    """Returns the options that are given; raises a ConfigError where one is given twice."""
    given = [name for word in words if (name := word.partition("=")[0]) in known and name.startswith("--")]
    for name, count in Counter(given).items():
        if count > 1:
            raise ConfigError(f"{name}: given {count} times; give it once, several values after one another")
    return frozenset(given)


def run_script(main: Callable[[], Any]) -> None:
    """Runs a script's main; a user's mistake prints one line and exits with code 1, Ctrl-C exits with 130."""
    # Standard error is for the user: no progress bars and deprecations of libraries.
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
    # All ranks meet the same error, or share it (training.distributed.together): one of them prints it.
    is_first = os.environ.get("RANK", "0") == "0"
    try:
        try:
            main()
        except SafeRLHFVideoError as error:
            _report(error, is_first)
            # At once: threads and libraries would delay the exit, and the other ranks would wait for this one.
            os._exit(1)
    except KeyboardInterrupt:  # of main, or of what waits before an error is printed
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # some press it twice
        sys.stdout.flush()
        if is_first:
            print("interrupted; run the same command again to go on", file=sys.stderr, flush=True)
            _explain_launcher()
        os._exit(130)


def _report(error: SafeRLHFVideoError, is_first: bool) -> None:
    sys.stdout.flush()
    rank = "" if is_first else f"rank {os.environ['RANK']}: "
    if is_first or isinstance(error, DeviceMemoryError) or _fails_alone():
        print(f"error: {rank}{' '.join(str(error).split())}", file=sys.stderr, flush=True)
        _explain_launcher()


def _explain_launcher() -> None:
    """Says whose the lines are that follow an error: a launcher reports each process that it ends as an error too."""
    for variable, launcher in LAUNCHERS.items():
        if variable in os.environ:
            print(f"(what follows is {launcher}, which ends all processes)", file=sys.stderr, flush=True)


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
