"""Serves scores over HTTP: to trainers, to other programs, and as a page to look at.

    python scripts/serve.py --model REWARD_DIR COST_DIR --video_root CLIPS

    curl -s localhost:8000/score -F 'prompt=a red ball' -F video=@0.mp4
    curl -s localhost:8000/score --json '{"prompt": "a red ball", "video": {"path": "0.mp4"}}'

Without a key only this machine may ask: --host 0.0.0.0 needs one, in --api_key_file or SAFE_RLHF_VIDEO_API_KEY.
docs/serving.md describes routes, limits and statuses; so does GET /docs of the server.
"""

import argparse
import os
from pathlib import Path

from safe_rlhf_video.cli import Parser
from safe_rlhf_video.errors import ConfigError
from safe_rlhf_video.serving.settings import KEY_VARIABLE, ServerSettings


def main() -> None:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options = ServerSettings.model_fields
    parser.add_argument("--model", nargs="+", required=True, metavar="DIR", help=options["model"].description)
    for name, option in options.items():
        if name not in ("model", "api_key"):
            kinds = {"video_root": Path, "api_key_file": Path, "access_log": Path, "backbone": str}
            kind = kinds.get(name, type(option.default))
            shown = "" if option.default is None else " (%(default)s)"
            parser.add_argument(f"--{name}", type=kind, default=option.default, help=f"{option.description}{shown}")
    arguments = vars(parser.parse_args())
    key = None if arguments["api_key_file"] else os.environ.get(KEY_VARIABLE) or None
    settings = ServerSettings(**arguments | {"model": tuple(arguments["model"])}, api_key=key)
    try:
        from safe_rlhf_video.serving.reward_server import serve
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] == "safe_rlhf_video":
            raise
        raise ConfigError(
            f"the server needs {error.name}, which is not installed; run pip install 'safe_rlhf_video[serve]'"
        ) from error
    serve(settings)
