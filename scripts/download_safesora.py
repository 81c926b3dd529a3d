"""Fetch one of SafeSora's corpora from the Hugging Face hub."""

from safe_rlhf_video.cli import run_script
from safe_rlhf_video.commands.download_safesora import main

if __name__ == "__main__":
    run_script(main)
