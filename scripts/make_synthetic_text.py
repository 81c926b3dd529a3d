"""Write a small text corpus in PKU-SafeRLHF's form whose preferences are known exactly."""

from safe_rlhf_video.cli import run_script
from safe_rlhf_video.commands.make_synthetic_text import main

if __name__ == "__main__":
    run_script(main)
