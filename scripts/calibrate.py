"""Fit what a trained model's scores mean, on comparisons or labelled clips that its training never read."""

from safe_rlhf_video.cli import run_script
from safe_rlhf_video.commands.calibrate import main

if __name__ == "__main__":
    run_script(main)
