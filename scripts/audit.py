"""Look at comparisons before anything is trained on them: leaks, duplicates, contradictions, noise, shape."""

from safe_rlhf_video.cli import run_script
from safe_rlhf_video.commands.audit import main

if __name__ == "__main__":
    run_script(main)
