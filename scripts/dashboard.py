"""Watch runs train, without an account: a page of this machine's own, drawn from metrics.jsonl."""

from safe_rlhf_video.cli import run_script
from safe_rlhf_video.commands.dashboard import main

if __name__ == "__main__":
    run_script(main)
