"""Train a reward model, which says how helpful a generation is.

deepspeed scripts/train_reward.py --config configs/reward.yaml [--section.field value ...]
"""

from safe_rlhf_video.cli import run_script
from safe_rlhf_video.commands.train import train_head

if __name__ == "__main__":
    run_script(lambda: train_head("reward", __doc__))
