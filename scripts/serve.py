"""Serve scores over HTTP: to trainers, to other programs, and as a page to look at."""

from safe_rlhf_video.cli import run_script
from safe_rlhf_video.commands.serve import main

if __name__ == "__main__":
    run_script(main)
