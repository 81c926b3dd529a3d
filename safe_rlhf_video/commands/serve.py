"""Serve scores over HTTP: to trainers, to other programs, and as a page to look at.

    python scripts/serve.py --model REWARD_DIR COST_DIR --video_root CLIPS

    curl -s localhost:8000/score -F 'prompt=a red ball' -F video=@0.mp4
    curl -s localhost:8000/score --json '{"prompt": "a red ball", "video": {"path": "0.mp4"}}'

Without a key only this machine may ask: --host 0.0.0.0 needs one, in --api_key_file or SAFE_RLHF_VIDEO_API_KEY.
docs/serving.md tells routes, limits and statuses; GET /docs of the server too.
"""

import argparse
from pathlib import Path

from safe_rlhf_video.cli import Parser
from safe_rlhf_video.errors import ConfigError
from safe_rlhf_video.serving.settings import KEY_VARIABLE, ServerSettings, read_key


def main() -> None:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = ServerSettings(model=("",))
    parser.add_argument(
        "--model", nargs="+", required=True, metavar="DIR", help="a reward, a cost, a moderation folder"
    )
    parser.add_argument("--host", default=default.host, help="the address to listen at (%(default)s)")
    parser.add_argument("--port", type=int, default=default.port, help="0 takes any that is free (%(default)s)")
    parser.add_argument("--video_root", type=Path, help="where paths in requests lead; without it, none is read")
    parser.add_argument("--api_key_file", type=Path, help=f"holds the key that clients show; else {KEY_VARIABLE} does")
    parser.add_argument("--backbone", help="the backbone's folder, if it lies elsewhere than in training")
    parser.add_argument("--device", default=default.device, help="auto, cpu, cuda or cuda:1 (%(default)s)")
    for name, meaning in (
        ("max_body_mb", "of a request"),
        ("max_clip_seconds", "of a clip"),
        ("max_videos", "of a request"),
        ("max_prompt_chars", "of a prompt"),
        ("queue_size", "requests in work at once; one more is answered with 429"),
        ("timeout_s", "seconds to the answer; later it is 503"),
        ("shutdown_s", "seconds that requests in work have when the server is ended"),
        ("batch_size", "clips scored at once"),
        ("batch_wait_ms", "how long a clip waits for others to be scored with"),
        ("workers", "decoding processes"),
        ("decode_memory_mb", "what each of them may take for a clip"),
    ):
        value = getattr(default, name)
        parser.add_argument(f"--{name}", type=type(value), default=value, help=f"{meaning} (%(default)s)")
    arguments = vars(parser.parse_args())
    key_file = arguments.pop("api_key_file")
    settings = ServerSettings(**arguments | {"model": tuple(arguments["model"])}, api_key=read_key(key_file))
    try:
        from safe_rlhf_video.serving.server import serve
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] == "safe_rlhf_video":
            raise
        raise ConfigError(
            f"the server needs {error.name}, which is not installed; run pip install 'safe_rlhf_video[serve]'"
        ) from error
    serve(settings)
