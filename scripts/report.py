"""Draw an evaluation as one HTML file to look at: figures with intervals, plots, and the pairs worth looking at."""

from safe_rlhf_video.cli import run_script
from safe_rlhf_video.commands.report import main

if __name__ == "__main__":
    run_script(main)
