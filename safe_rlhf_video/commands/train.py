"""Trains heads: what scripts/train_reward.py, train_cost.py and train_moderation.py do."""

from __future__ import annotations

import os
import sys

from safe_rlhf_video.config_parser import list_overrides, parse_config
from safe_rlhf_video.training.config import TrainConfig


def train_head(head: str, description: str) -> None:
    """Trains what the configuration on the command line says.

    Args:
        head: what the script is named for: "reward", "cost" or "moderation"; the configuration must train it.
        description: the script's help.
    """
    config = parse_config(TrainConfig, sys.argv[1:], description)
    from safe_rlhf_video.training.loop import train

    try:
        train(config, head, list_overrides(sys.argv[1:]))
    except SystemExit as end:  # of SIGTERM: all is closed, and what libraries still had to do may fail by now
        sys.stdout.flush()
        os._exit(int(end.code or 0))
