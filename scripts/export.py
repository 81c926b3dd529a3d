"""Write a model folder to hand on, with a card; merged with its backbone if asked for."""

from safe_rlhf_video.cli import run_script
from safe_rlhf_video.commands.export import main

if __name__ == "__main__":
    run_script(main)
