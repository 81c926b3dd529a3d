"""Evaluate models on labelled comparisons or clips: intervals, calibration, the label ceiling, controls, moderation."""

from safe_rlhf_video.cli import run_script
from safe_rlhf_video.commands.evaluate import main

if __name__ == "__main__":
    run_script(main)
