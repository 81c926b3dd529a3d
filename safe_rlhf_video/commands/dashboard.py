"""Watch runs train, without an account: a page of this machine's own, drawn from metrics.jsonl.

    python scripts/dashboard.py RUN [RUN ...] [--port 8080]
    python scripts/dashboard.py RUN [RUN ...] --out page.html

RUN is a run folder, the `out` of a training; several are drawn into the same plots. The page renews itself while they
train and is there until Ctrl-C. --out writes it to a file as it is now, and ends. docs/dashboards.md tells the rest.
"""

import argparse
from pathlib import Path

from safe_rlhf_video.cli import Parser
from safe_rlhf_video.errors import ConfigError


def main() -> None:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN")
    parser.add_argument("--port", type=int, default=0, help="0 takes any that is free")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the page there instead of serving it")
    arguments = parser.parse_args()

    from safe_rlhf_video.pages.dashboard.runs import open_runs

    runs = open_runs(arguments.runs)
    if arguments.out:
        write_page(runs, arguments.out)
        return
    from safe_rlhf_video.pages.dashboard.server import build_server

    with build_server(runs, arguments.port) as server:
        print(f"http://127.0.0.1:{server.server_port}/ shows {len(runs)} run(s); Ctrl-C ends it", flush=True)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            print("ended")


def write_page(runs: list, out: Path) -> None:
    from safe_rlhf_video.files import write_whole
    from safe_rlhf_video.pages.dashboard.page import make_body, make_page, make_title

    for run in runs:
        run.refresh()
        if not run.num_rows:
            raise ConfigError(f"{run.name}: no row in metrics.jsonl to draw; wait for the run's first step")
    try:
        write_whole(out, make_page(make_body(runs, is_live=False), make_title(runs)).encode(errors="replace"))
    except OSError as error:
        raise ConfigError(f"{out}: cannot be written ({error.strerror}); give another file as out") from error
    print(f"wrote {out}")
