"""Write the clips that a text-to-video model makes for a list of prompts."""

from safe_rlhf_video.cli import run_script
from safe_rlhf_video.commands.generate import main

if __name__ == "__main__":
    run_script(main)
