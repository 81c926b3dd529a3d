"""Decode every clip of one or several data sets once, into a frame store that runs read from."""

from safe_rlhf_video.cli import run_script
from safe_rlhf_video.commands.prepare_videos import main

if __name__ == "__main__":
    run_script(main)
