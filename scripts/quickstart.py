"""The main job from end to end: make a world, audit and decode it, train a reward and a cost, evaluate them, choose."""

from safe_rlhf_video.cli import run_script
from safe_rlhf_video.commands.quickstart import main

if __name__ == "__main__":
    run_script(main)
