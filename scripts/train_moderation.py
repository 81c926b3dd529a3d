"""Train a moderation model: whether a generation is harmful, and in which of SafeSora's 12 ways; or a text, in which of
PKU-SafeRLHF's 19, and how severely.

deepspeed scripts/train_moderation.py --config configs/moderation.yaml [--section.field value ...]
deepspeed scripts/train_moderation.py --config configs/text_moderation.yaml [--section.field value ...]
"""

import sys

from safe_rlhf_video.cli import parse_config, run_script
from safe_rlhf_video.training.config import TrainConfig


def main() -> None:
    config = parse_config(TrainConfig, sys.argv[1:], __doc__)
    from safe_rlhf_video.training.loop import train

    train(config, head="moderation")


if __name__ == "__main__":
    run_script(main)
