"""Puts this project's dashboard into a W&B project, as a workspace made of `pages/dashboard_spec.py`."""

from safe_rlhf_video.cli import run_script
from safe_rlhf_video.commands.create_dashboard import main

if __name__ == "__main__":
    run_script(main)
