"""Train a moderation model, which says whether a generation is harmful, and in which of SafeSora's 12 ways.

Of a text it says in which of PKU-SafeRLHF's 19 ways, and how severely.

deepspeed scripts/train_moderation.py --config configs/moderation.yaml [--section.field value ...]
deepspeed scripts/train_moderation.py --config configs/text_moderation.yaml [--section.field value ...]
"""

from safe_rlhf_video.cli import run_script
from safe_rlhf_video.commands.train import train_head

if __name__ == "__main__":
    run_script(lambda: train_head("moderation", __doc__))
