"""Draws an evaluation as one HTML file: figures with intervals, plots, and the pairs worth looking at.

    python scripts/report.py --evaluation DIR [--run RUN_DIR ...] --out report.html [--figures DIR]

DIR is what scripts/evaluate.py wrote; nothing else is needed. Pictures come from the clips that were evaluated, or from
the frame store where these are gone; --video_dir and --frame_store say where they are now. RUN_DIRs, the `out` of
trainings, add their learning curves. docs/report.md explains what the page shows.
"""

import argparse
from pathlib import Path

from safe_rlhf_video.cli import Parser


def main() -> None:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--evaluation", type=Path, required=True, metavar="DIR", help="what scripts/evaluate.py wrote")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE")
    parser.add_argument("--run", nargs="+", type=Path, default=(), metavar="RUN_DIR", help="for learning curves")
    parser.add_argument("--video_dir", type=Path, metavar="DIR", help="where the clips are, if they moved")
    parser.add_argument("--frame_store", metavar="DIR", help="take all pictures from this frame store")
    parser.add_argument("--workers", type=int, default=2, help="processes to decode in")
    parser.add_argument("--figures", type=Path, metavar="DIR", help="write every plot there as PDF and PNG")
    arguments = parser.parse_args()
    if arguments.frame_store is not None:
        parser.refuse_unused("--video_dir", "--workers", because="all pictures are from --frame_store")
    write_report(arguments)


def write_report(arguments: argparse.Namespace) -> None:
    from safe_rlhf_video.pages.document import write_figures, write_page
    from safe_rlhf_video.pages.gallery import choose_pairs, clips_to_show
    from safe_rlhf_video.pages.report_data import read_report_data
    from safe_rlhf_video.pages.report_page import make_report_page, num_unread
    from safe_rlhf_video.pages.report_plots import report_plots
    from safe_rlhf_video.pages.run_metrics import open_runs, read_rows
    from safe_rlhf_video.pages.thumbnails import draw_thumbnails, find_files

    runs = open_runs(arguments.run)
    read_rows(runs)
    data = read_report_data(arguments.evaluation)
    rows = choose_pairs(data)
    clips = clips_to_show(rows, data)
    files = {} if arguments.frame_store else find_files(clips, arguments.video_dir)
    pictures = draw_thumbnails(clips, files, arguments.frame_store or data.frame_store, arguments.workers)
    plots = report_plots(data, runs)
    write_page(make_report_page(data, plots, runs, rows, pictures), arguments.out)
    if unread := num_unread(pictures):
        print(f"{unread} of {len(pictures)} clips of the gallery cannot be read; the report shows why")
    print(f"wrote {arguments.out}")
    if arguments.figures:
        print(write_figures(plots, arguments.figures))
