"""Shows how runs train, without an account: a page on this machine, drawn from metrics.jsonl.

    python scripts/dashboard.py RUN [RUN ...] [--port 8080]
    python scripts/dashboard.py RUN [RUN ...] --out page.html

RUN is a run folder, the `out` of a training; several are drawn into the same plots. The page renews itself while they
train and is served until Ctrl-C. --out writes it to a file as it is now, and ends. See docs/dashboards.md.
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
    parser.add_argument("--figures", type=Path, metavar="DIR", help="with --out: write every plot there as PDF and PNG")
    arguments = parser.parse_args()
    if arguments.out:
        parser.refuse_unused("--port", because="--out writes a file and serves nothing")
    if arguments.figures and not arguments.out:
        raise ConfigError("--figures needs --out: a live page writes no files")

    from safe_rlhf_video.pages.run_metrics import open_runs

    runs = open_runs(arguments.runs)
    if arguments.out:
        write_dashboard(runs, arguments.out, arguments.figures)
        return
    from safe_rlhf_video.pages.live_page import build_server

    with build_server(runs, arguments.port) as server:
        print(f"http://127.0.0.1:{server.server_port}/ shows {len(runs)} run(s); Ctrl-C ends it", flush=True)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            print("ended")


def write_dashboard(runs: list, out: Path, figures: Path | None) -> None:
    """Writes the page of some runs as they are now, and their plots where `figures` names a folder."""
    from safe_rlhf_video.pages.dashboard_page import dashboard_plots, make_dashboard_page
    from safe_rlhf_video.pages.document import write_figures, write_page
    from safe_rlhf_video.pages.run_metrics import read_rows

    read_rows(runs)
    plots = dashboard_plots(runs)
    write_page(make_dashboard_page(runs, plots), out)
    print(f"wrote {out}")
    if figures:
        print(write_figures(plots, figures))
