"""Convert what other people publish to SafeSora's JSON, which the trainers read."""

from safe_rlhf_video.cli import run_script
from safe_rlhf_video.commands.convert import main

if __name__ == "__main__":
    run_script(main)
