"""Write a small world in SafeSora's format whose preferences are known exactly."""

from safe_rlhf_video.cli import run_script
from safe_rlhf_video.commands.make_synthetic import main

if __name__ == "__main__":
    run_script(main)
