"""Score generations: pairs get a choice, lists of candidates an order, single clips their scores."""

from safe_rlhf_video.cli import run_script
from safe_rlhf_video.commands.score import main

if __name__ == "__main__":
    run_script(main)
