"""Train a cost model, which says how harmful a generation is; above zero is unsafe.

deepspeed scripts/train_cost.py --config configs/cost.yaml [--section.field value ...]
"""

from safe_rlhf_video.cli import run_script
from safe_rlhf_video.commands.train import train_head

if __name__ == "__main__":
    run_script(lambda: train_head("cost", __doc__))
