"""Draw an evaluation as one HTML file to look at: figures with intervals, plots, and the pairs worth looking at.

    python scripts/report.py --evaluation DIR [--run RUN_DIR ...] --out report.html

DIR is what scripts/evaluate.py wrote. The comparisons are read from the data that it names; give --data where they lie
elsewhere now. RUN_DIRs, the `out` of trainings, add their learning curves. docs/report.md tells what the page shows.
"""

import argparse
from pathlib import Path

from safe_rlhf_video.cli import Parser
from safe_rlhf_video.errors import ConfigError, VideoDecodeError


def main() -> None:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--evaluation", type=Path, required=True, metavar="DIR", help="what scripts/evaluate.py wrote")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE")
    parser.add_argument("--run", nargs="+", type=Path, default=(), metavar="RUN_DIR", help="for learning curves")
    parser.add_argument("--data", metavar="CONFIG", help="the test comparisons; default: those that were judged")
    parser.add_clip_source()
    parser.add_argument("--workers", type=int, default=2, help="processes to decode in")
    arguments = parser.parse_args()
    write_report(arguments)


def write_report(arguments: argparse.Namespace) -> None:
    from safe_rlhf_video.evaluation.labelled_clips import load_labelled_clips
    from safe_rlhf_video.files import write_whole
    from safe_rlhf_video.pages.dashboard.runs import open_runs
    from safe_rlhf_video.pages.report.gallery import choose, clip_names
    from safe_rlhf_video.pages.report.page import make_report
    from safe_rlhf_video.pages.report.sources import join, read_result
    from safe_rlhf_video.pages.report.thumbnails import draw_thumbnails

    runs = open_runs(arguments.run)
    for run in runs:
        run.refresh()
        if not run.num_rows:
            raise ConfigError(f"{run.name}: no row in metrics.jsonl to draw; wait for the run's first step")
    result = read_result(arguments.evaluation)
    data = arguments.data or result["data"]
    clips = load_labelled_clips(
        data, arguments.config_filename, arguments.video_dir, arguments.frame_store, arguments.unreadable
    )
    evaluated = join(arguments.evaluation, result, clips)
    choices = choose(evaluated)
    pictures = draw_thumbnails(clips, clip_names(choices), arguments.workers)
    page = make_report(evaluated, runs, choices, pictures)
    try:
        write_whole(arguments.out, page.encode(errors="replace"))
    except OSError as error:
        raise ConfigError(f"{arguments.out}: cannot be written ({error.strerror}); give another file as out") from error
    if unread := sum(isinstance(picture, VideoDecodeError) for picture in pictures.values()):
        print(f"{unread} of {len(pictures)} clips of the gallery cannot be read; the report shows why")
    print(f"wrote {arguments.out}")
