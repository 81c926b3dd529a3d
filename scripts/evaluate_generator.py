"""Score the clips that one or two text-to-video models made for a set of prompts, and compare the models."""

from safe_rlhf_video.cli import run_script
from safe_rlhf_video.commands.evaluate_generator import main

if __name__ == "__main__":
    run_script(main)
